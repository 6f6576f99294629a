"""What can be told of the baselines without any edit: norms, cosines, the topic part, signal against noise, capture of held-out pairs."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import row_space
from resect.directions import mean_of_differences
from resect.directions.bootstrap import bootstrap
from resect.edit.algebra import orthonormal_basis
from resect.studies.contrast_arms import Recipe, topics
from resect.studies.contrast_materials import ContrastMaterials


def geometry(materials: ContrastMaterials, names: tuple[str, ...], *, seed: int) -> dict[str, Any]:
    """Return, layer by layer, what the baselines' differences of means are like; the unmatched one is what others are compared with."""
    found = {name: materials.baseline(name) for name in names}
    means = {name: mean_of_differences(materials.harmful, baseline).vectors[:, 0] for name, baseline in found.items()}
    bars = {name: bootstrap(materials.harmful, baseline, seed=seed) for name, baseline in found.items()}
    reference = means.get("unmatched")
    return {
        "norms": {name: mean.norm(dim=-1).tolist() for name, mean in means.items()},
        "cosines": {
            name: torch.nn.functional.cosine_similarity(mean, reference, dim=-1).tolist()
            for name, mean in means.items()
            if reference is not None and name != "unmatched"
        },
        "topic_part": {name: topic_part(mean, materials).tolist() for name, mean in means.items()},
        "signal_to_noise": {name: error.signal_to_noise.tolist() for name, error in bars.items()},
        "cone": {name: error.cone.tolist() for name, error in bars.items()},
        "residual_norm": materials.harmful.double().norm(dim=-1).mean(0).tolist(),
    }


def topic_part(direction: Float[Tensor, "layer d_model"], materials: ContrastMaterials) -> Float[Tensor, " layer"]:
    """Return the share of a direction's squared norm that lies in the span of the topic means (less the unmatched mean)."""
    basis = row_space(topics(materials).columns.double())
    inside = (direction.double()[:, None, :] @ basis.mT).square().sum((1, 2))
    return inside / direction.double().square().sum(-1).clamp_min(1e-300)


def capture_of_pairs(recipes: Mapping[str, Recipe], held_out: Float[Tensor, "pair layer d_model"]) -> dict[str, Any]:
    """Return for each arm and layer how much of held-out pair differences its directions capture, four ways, means over pairs.

    `best` is the largest |cos| with one direction, `span` |Q^T d| / |d| with Q the basis of all; `_squared` are the same squared.
    """
    return {name: _capture(recipe, held_out) for name, recipe in recipes.items()}


def _capture(recipe: Recipe, held_out: Float[Tensor, "pair layer d_model"]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"best": [], "best_squared": [], "span": [], "span_squared": []}
    pairs = torch.nn.functional.normalize(held_out.double(), dim=-1)
    for layer, vectors in enumerate(recipe.directions.unit.double()):
        basis = orthonormal_basis(vectors).double()
        best = (pairs[:, layer] @ vectors.T).abs().amax(1)
        span = (pairs[:, layer] @ basis).norm(dim=1)
        for name, value in (("best", best), ("span", span)):
            found[name].append(float(value.mean()))
            found[f"{name}_squared"].append(float(value.square().mean()))
    return found
