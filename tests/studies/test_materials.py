"""Directions and atoms against the plain means of separately captured rows."""

import torch

from resect.activations import capture
from resect.prompts import Prompt
from resect.studies.materials import atom_directions, gather
from resect.studies.steps import Steps


def rows(bench, texts):
    return capture(bench.lab.model, bench.lab.render([Prompt(t) for t in texts]), batch_tokens=200, side="right").rows.double()


def test_the_raw_direction_is_the_difference_of_the_means(bench):
    sides = [rows(bench, getattr(bench.behaviour, side)["extract"].prompts.texts).mean(0) for side in ("harmful", "harmless")]
    assert torch.allclose(bench.materials.raw.double(), sides[0] - sides[1], atol=1e-4)


def test_every_atom_is_the_difference_of_its_own_sides(bench, inputs):
    atoms = inputs.atoms[:3]
    found = atom_directions(bench.lab, atoms)
    assert found.shape == (6, 3, 128)
    for k, atom in enumerate(atoms):
        wanted = rows(bench, atom.positive).mean(0) - rows(bench, atom.negative).mean(0)
        assert torch.allclose(found[:, k].double(), wanted, atol=1e-4)
        assert torch.equal(bench.materials.atom(atom.name), bench.materials.atoms[:, k])


def test_targets_are_not_kept(bench, inputs):
    kept = [a.name for a in inputs.atoms if a.role != "target"]
    assert bench.materials.kept_atoms.shape[1] == len(kept) < len(inputs.atoms)
    assert torch.equal(bench.materials.kept_atoms[:, 0], bench.materials.atom(kept[0]))


def test_materials_come_back_from_the_folder(bench, inputs):
    again = gather(bench.lab, inputs, bench.behaviour, Steps(bench.steps.folder))
    for name in ("harmful", "harmless", "atoms"):
        assert torch.equal(getattr(again, name), getattr(bench.materials, name))
