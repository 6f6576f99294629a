"""Arms that are one edit are found, and no others; the study gives them one set of figures."""

from dataclasses import replace

import pytest
import torch

from resect.directions import Directions
from resect.edit.plan import WriterEdit
from resect.studies.contrast_arms import Arm, Recipe
from resect.studies.contrast_same import ROUNDING, distance, one_edit, same_edits


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recipe(vectors, *, joint=True, scales=None):
    return Recipe(Directions(vectors, "planted"), joint=joint, scales=scales)


def test_the_distance_of_two_edits_is_that_of_their_matrices():
    a, b = (WriterEdit("w", draw(30, 3, seed=k), draw(30, 3, seed=k + 9), gamma) for k, gamma in ((0, 0.5), (1, 1.2)))
    wanted = (a.gamma * a.u @ a.c.T - b.gamma * b.u @ b.c.T).norm() / (a.gamma * a.u @ a.c.T).norm()
    assert distance(a, b) == pytest.approx(float(wanted), rel=1e-5)
    near = replace(a, u=a.u + 1e-6 * draw(30, 3, seed=3))
    assert distance(a, near) == pytest.approx(float((near.u - a.u).double().matmul(a.c.T.double()).norm() / (a.u @ a.c.T).norm()), rel=1e-2)
    assert distance(a, a) < 1e-15


def test_edits_with_one_span_are_one_and_every_other_one_is_its_own(desk):
    writers, vectors = desk.lab.writers, draw(6, 2, 128)
    turned = torch.einsum("kj,ljd->lkd", torch.tensor([[1.0, 2.0], [3.0, -1.0]]), vectors)
    orthogonal = torch.linalg.qr(vectors.mT).Q.mT
    recipes = {
        "plain": recipe(vectors),
        "turned": recipe(turned),  # the same span
        "longer": recipe(7 * vectors),
        "orthogonal, in order": recipe(orthogonal.contiguous(), joint=False),
        "in order": recipe(vectors, joint=False),  # not orthogonal: another edit
        "scaled": recipe(vectors, scales=torch.full((6, 2), 0.5)),
        "whole": recipe(vectors, scales=torch.ones(6, 2)),
        "other": recipe(vectors + 1e-3 * draw(6, 2, 128, seed=5)),
        "one layer less": recipe(torch.cat([vectors[:5], 0 * vectors[5:]])),
        "scaled again": recipe(2 * vectors, scales=torch.full((6, 2), 0.5)),
    }
    found = same_edits({Arm(name, ""): r for name, r in recipes.items()}, writers)
    assert {a.baseline: b.baseline for a, b in found.items()} == {
        "turned": "plain",
        "longer": "plain",
        "orthogonal, in order": "plain",
        "whole": "plain",
        "scaled again": "scaled",
    }
    assert ROUNDING < 1e-4


def test_arms_of_one_edit_share_their_name_for_it():
    same = {"b": "a", "c": "a"}
    assert one_edit("a", "b", same)
    assert one_edit("c", "b", same)
    assert not one_edit("d", "b", same)


def test_the_study_gives_one_edit_one_set_of_figures(contrasted):
    document = contrasted[0].document
    shared = {name: entry["same_as"] for name, entry in document["arms"].items() if entry["same_as"]}
    assert shared["unmatched/mean_difference/raw_norm"] == "unmatched/mean_difference"
    for name, first in shared.items():
        for part in ("grids", "evaluation"):
            assert document[part][name] == document[part][first]
        assert document["arms"][name]["chosen"] == document["arms"][first]["chosen"]
    tested = {(row["a"], row["b"]) for row in document["comparisons"]}
    assert tested
    assert not any(one_edit(a, b, shared) for a, b in tested)


def test_what_is_called_one_edit_measures_alike(desk):
    """Not taken on trust: the orthogonal form of a map's directions is screened as the directions themselves are."""
    from resect.studies.contrast_grid import Place, screen_cell

    plain = desk.recipes.of(Arm("matched", "class_means"))
    turned = replace(
        plain, directions=replace(plain.directions, vectors=torch.linalg.svd(plain.directions.vectors, full_matrices=False)[2])
    )
    assert same_edits({Arm("a", ""): plain, Arm("b", ""): turned}, desk.lab.writers)
    cells = [screen_cell(desk.screen, r, Place((3,), "single"), 0.8) for r in (plain, turned)]
    assert cells[0]["kl"] == pytest.approx(cells[1]["kl"], rel=1e-3)
    assert cells[0]["moved"] == cells[1]["moved"]
