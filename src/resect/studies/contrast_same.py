"""Arms that are one edit under several names: each is measured once, and the report names the arm that it stands for.

Orthogonal directions removed jointly span what the directions that they are made of span; without their topic part all baselines with one
mean a category agree; with one partner a prompt the matched and the paired difference of means are one vector. A third of the arms are so.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch

from resect.edit.plan import EditPlan, WriterEdit, WriterLike
from resect.studies.contrast_arms import Arm, Recipe

ROUNDING = 1e-5
"""Relative difference below which two edits are one: directions are kept in float32, whose rounding is 6e-8 a number."""
WEIGHTS = (0.5, 1.0)
"""Weights at which edits are compared: removal one after another is no multiple of its weight."""


def same_edits(recipes: Mapping[Arm, Recipe], writers: Sequence[WriterLike]) -> dict[Arm, Arm]:
    """Return for every arm that edits as an earlier one does, at each of its layers and at any weight, the first such arm."""
    plans = {arm: [recipe.plan(writers, recipe.usable, weight) for weight in WEIGHTS] for arm, recipe in recipes.items()}
    found: dict[Arm, Arm] = {}
    for first, arm in combinations(recipes, 2):
        if first not in found and arm not in found and all(_same(a, b) for a, b in zip(plans[first], plans[arm], strict=True)):
            found[arm] = first
    return found


def one_edit(a: str, b: str, same: Mapping[str, str]) -> bool:
    """Return whether two arms, by name, make one edit; `same` holds the first arm of every one that makes an earlier one's."""
    return same.get(a, a) == same.get(b, b)


def _same(a: EditPlan, b: EditPlan) -> bool:
    if [edit.writer for edit in a.edits] != [edit.writer for edit in b.edits]:
        return False
    return all(distance(x, y) < ROUNDING for x, y in zip(a.edits, b.edits, strict=True))


def distance(a: WriterEdit, b: WriterEdit) -> float:
    """Return |γ U Cᵀ − γ' U' C'ᵀ| / |γ U Cᵀ| (Frobenius), of two edits of one writer: by QR of the factors, so nothing cancels."""
    u, c = torch.cat([a.gamma * a.u, -b.gamma * b.u], dim=1).double(), torch.cat([a.c, b.c], dim=1).double()
    return float(_norm(u, c) / _norm(a.gamma * a.u.double(), a.c.double()))


def _norm(u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    r = [torch.linalg.qr(factor, mode="r").R for factor in (u, c)]
    return (r[0] @ r[1].T).norm()
