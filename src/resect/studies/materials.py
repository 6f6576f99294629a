"""What directions and cleaning are made from: activations of both sides, and concept atoms."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resect import directions
from resect.activations import capture
from resect.atoms import Atom
from resect.config import StudyConfig
from resect.prompts import Prompt
from resect.studies.behaviour import Behaviour
from resect.studies.inputs import StudyInputs
from resect.studies.lab import Lab
from resect.studies.steps import Steps


@dataclass(frozen=True, eq=False)
class Materials:
    """Activations at the study's position, one row a prompt, and atom directions with raw norms."""

    harmful: Float[Tensor, "prompt_a layer d_model"]
    harmless: Float[Tensor, "prompt_b layer d_model"]
    atoms: Float[Tensor, "layer atom d_model"]
    names: tuple[str, ...]
    kept: tuple[bool, ...]

    @property
    def raw(self) -> Float[Tensor, "layer d_model"]:
        """The raw refusal direction, norm kept."""
        return directions.mean_difference(self.harmful, self.harmless)

    @property
    def kept_atoms(self) -> Float[Tensor, "layer kept d_model"]:
        """Shield and confound atoms."""
        return self.atoms[:, torch.tensor(self.kept)]

    def atom(self, name: str) -> Float[Tensor, "layer d_model"]:
        """One atom by name."""
        return self.atoms[:, self.names.index(name)]


def gather(lab: Lab[StudyConfig], inputs: StudyInputs, behaviour: Behaviour, steps: Steps) -> Materials:
    """Return the materials of a study, captured from the base model (or read back from the run folder)."""
    lab = lab.only("position")
    sides = {"harmful": behaviour.harmful["extract"].prompts, "harmless": behaviour.harmless["extract"].prompts}
    rows = {side: steps.tensors(side, lambda p=p: {"rows": _rows(lab, p)}, key=lab.key("rows", p))["rows"] for side, p in sides.items()}
    known = lab.key("atoms", inputs.atoms, _prompts(inputs.atoms))
    return Materials(
        **rows,
        atoms=steps.tensors("atoms", lambda: {"atoms": atom_directions(lab, inputs.atoms)}, key=known)["atoms"],
        names=tuple(a.name for a in inputs.atoms),
        kept=tuple(a.kept for a in inputs.atoms),
    )


def atom_directions(lab: Lab[StudyConfig], atoms: tuple[Atom, ...]) -> Float[Tensor, "layer atom d_model"]:
    """Return a_k = mean(positive) - mean(negative) per layer, raw norm kept; all prompts in one capture."""
    rows = _rows(lab, _prompts(atoms))
    found, start = [], 0
    for atom in atoms:
        middle, end = start + len(atom.positive), start + len(atom.positive) + len(atom.negative)
        found.append(directions.mean_difference(rows[start:middle], rows[middle:end]))
        start = end
    return torch.stack(found, dim=1)


def _prompts(atoms: tuple[Atom, ...]) -> list[Prompt]:
    return [Prompt(text) for atom in atoms for text in (*atom.positive, *atom.negative)]


def _rows(lab: Lab[StudyConfig], prompts: Iterable[Prompt]) -> Tensor:
    return capture(lab.model, lab.render(prompts), position=lab.config.position, batch_tokens=lab.config.batch_tokens).rows
