"""What the contrast experiment measures, on the shipped organism with a few prompts: which writers an edit touches, and what it does."""

import pytest
import torch
from contrast_measure import ALONE, EVERYWHERE, Bench, geometry, look, plan, single
from contrast_proposals import matched

from resect.config.contrast import make_contrast_config
from resect.directions import Directions
from resect.organism.shipped import load_organism
from resect.studies.behaviour import observe
from resect.studies.contrast_arms import Recipe
from resect.studies.contrast_inputs import from_organism
from resect.studies.contrast_materials import gather_sides
from resect.studies.lab import Lab
from resect.studies.steps import Steps

SMALL = {"methods": ["mean_difference"], "extract_prompts": 24, "validation_prompts": 8, "test_prompts": 8, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    organism, config = load_organism(), make_contrast_config(SMALL)
    inputs, steps = from_organism(organism, config=config), Steps(tmp_path_factory.mktemp("experiment"))
    lab = Lab(inputs.model, config)
    behaviour = observe(lab, inputs.study, steps)
    return Bench(organism, lab, inputs, behaviour, gather_sides(lab, inputs, behaviour, steps))


def test_alone_edits_one_layer_and_everywhere_edits_all_with_one_direction(bench: Bench) -> None:
    recipe = single(matched(bench.materials))
    of = {w.name: w.layer for w in bench.lab.writers}
    alone, everywhere = plan(bench, recipe, 3, ALONE, 1.2), plan(bench, recipe, 3, EVERYWHERE, 1.0)
    assert {of[edit.writer] for edit in alone.edits} == {3}
    assert {edit.writer for edit in everywhere.edits} == set(of)
    expected = torch.nn.functional.normalize(recipe.directions.vectors[3, 0], dim=0)
    for edit in everywhere.edits:
        assert torch.allclose(edit.u[:, 0].abs(), expected.abs(), atol=1e-5)
        assert edit.gamma == 1.0


def test_raw_norms_are_those_of_the_source_layer_everywhere(bench: Bench) -> None:
    vectors = matched(bench.materials)[:, None]
    scales = torch.linspace(0.1, 0.6, len(vectors))[:, None]
    edits = plan(bench, Recipe(Directions(vectors, "mean_difference"), joint=True, scales=scales), 4, EVERYWHERE, 1.0).edits
    for edit in edits:
        removed = edit.gamma * torch.linalg.matrix_norm(edit.u @ edit.c.T, ord=2)
        assert float(removed) == pytest.approx(float(scales[4, 0]), rel=1e-4)


def test_refusal_goes_with_its_direction_and_stays_with_a_random_one(bench: Bench) -> None:
    nothing = plan(bench, single(matched(bench.materials)), 5, EVERYWHERE, 1e-9)
    assert look(bench, nothing, "test")["kl"] == pytest.approx(0, abs=1e-6)
    base = look(bench, nothing, "test")["refusal"]
    random = torch.randn(matched(bench.materials).shape, generator=torch.Generator().manual_seed(0))
    assert base > 0.8
    assert look(bench, plan(bench, single(random), 5, EVERYWHERE, 1.0), "test")["refusal"] == base
    assert look(bench, plan(bench, single(matched(bench.materials)), 5, EVERYWHERE, 1.0), "test")["refusal"] < base


def test_tuning_added_nothing_before_the_layers_it_tuned(bench: Bench) -> None:
    table = geometry(bench)
    assert table["added_norm"][:2] == [0.0, 0.0]
    assert min(table["added_norm"][2:]) > 0
    assert table["purity_matched"][-1] > 0.5
