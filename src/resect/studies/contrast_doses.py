"""Dose-response of the difference of means: against the share of on-topic prompts in the baseline, and against the number of prompts.

Every dose has the same choice: all layers together, and the layers that are best alone for the unmatched baseline, at every weight;
validation picks the cell, test scores it once.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from resect.config import ContrastConfig
from resect.directions import Baseline, mean_of_differences
from resect.studies.contrast_arms import Recipe
from resect.studies.contrast_grid import Place, Screen, choose, screen_cell
from resect.studies.contrast_materials import ContrastMaterials
from resect.studies.contrast_scores import Examiner, examine, summary

SINGLES = 2
"""Layers that a dose is tried at alone."""


def share_doses(materials: ContrastMaterials, config: ContrastConfig) -> dict[str, tuple[dict[str, Any], Recipe]]:
    """Return the recipe of every share of on-topic prompts, by name."""
    found = {}
    for share in config.shares:
        recipe = _recipe(materials, materials.mixed(share))
        found[f"share_{share:g}"] = ({"baseline": "mixed", "share": share, "n": len(materials.prompts)}, recipe)
    return found


def size_doses(materials: ContrastMaterials, config: ContrastConfig) -> dict[str, tuple[dict[str, Any], Recipe]]:
    """Return the recipe of every number of prompts and baseline, by name; prompts are evenly over categories, as in the materials."""
    found = {}
    for size in (s for s in config.sizes if s <= len(materials.prompts)):
        part = first_prompts(materials, size)
        for name in ("unmatched", "matched"):
            found[f"size_{name}_{size}"] = ({"baseline": name, "share": None, "n": size}, _recipe(part, part.baseline(name)))
    return found


def first_prompts(materials: ContrastMaterials, size: int) -> ContrastMaterials:
    """Return the materials of the first harmful prompts, with as many matched and unmatched rows (of a category at least one)."""
    prompts, count = materials.prompts[:size], materials.matched_count
    matched = _rows_for(materials, prompts, size)
    rows = torch.tensor([*matched, *(count + i for i in range(min(size, len(materials.benign) - count)))])
    weights = {}
    for name in ("unmatched", "matched"):
        part = materials.weights[name][:size][:, rows]
        weights[name] = part / part.sum(1, keepdim=True)
    benign = tuple(materials.benign_prompts[i] for i in rows.tolist())
    return replace(
        materials,
        harmful=materials.harmful[:size],
        benign=materials.benign[rows],
        prompts=prompts,
        benign_prompts=benign,
        matched_count=len(matched),
        weights=weights,
    )


def _rows_for(materials: ContrastMaterials, prompts: Sequence[Any], size: int) -> list[int]:
    """Return the first rows of every category that the prompts have, as many as it has prompts among them."""
    categories = [p.category for p in materials.benign_prompts[: materials.matched_count]]
    wanted = [p.category for p in prompts]
    rows = []
    for category in dict.fromkeys(wanted):
        there = [i for i, c in enumerate(categories) if c == category]
        rows += there[: wanted.count(category)]
    return sorted(rows)[:size]


def run_dose(screen: Screen, examiner: Examiner, recipe: Recipe, singles: Sequence[int]) -> dict[str, Any]:
    """Return a dose's chosen cell and its test figures."""
    places = [Place(recipe.usable, "all"), *(Place((layer,), "single") for layer in singles[:SINGLES] if layer in recipe.usable)]
    cells = [screen_cell(screen, recipe, place, w) for place in places for w in screen.lab.config.weights]
    chosen = choose(screen, recipe, cells)
    result = examine(examiner, recipe.plan(screen.lab.writers, chosen["layers"], chosen["weight"]))
    return {"chosen": chosen, "test": summary(result, seed=screen.lab.config.seed)}


def _recipe(materials: ContrastMaterials, baseline: Baseline) -> Recipe:
    return Recipe(mean_of_differences(materials.harmful, baseline), joint=True, scales=None)
