"""What can be told of the baselines without any edit: norms, cosines, the topic part, signal against noise, capture of held-out pairs."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import row_space
from resect.directions import Baseline, mean_of_differences
from resect.directions.bootstrap import bootstrap, component, split_half
from resect.directions.permutation import permutation_p
from resect.edit.algebra import orthonormal_basis
from resect.errors import UserError
from resect.evaluation.statistics import holm
from resect.studies.contrast_arms import Recipe, topics
from resect.studies.contrast_materials import ContrastMaterials

SHUFFLES = 1999
"""Draws of the permutation null: the least p-value is 1 / 2000, which Holm's correction over a hundred layers leaves at 0.05."""


def geometry(materials: ContrastMaterials, names: tuple[str, ...], *, angle: float, seed: int) -> dict[str, Any]:
    """Return, layer by layer, what the baselines' differences of means are like; the unmatched one is what others are compared with.

    `errors` are the error bars of each baseline, `no_errors` the reason where there are none; `angle` is what `prompts_needed` are for.
    """
    found = {name: materials.baseline(name) for name in names}
    means = {name: mean_of_differences(materials.harmful, baseline).vectors[:, 0] for name, baseline in found.items()}
    reference = means.get("unmatched")
    errors, without = dict[str, Any](), dict[str, str]()
    for name, baseline in found.items():
        try:
            errors[name] = error_bars(materials, baseline, angle=angle, seed=seed)
        except UserError as error:
            without[name] = str(error)
    return {
        "norms": {name: mean.norm(dim=-1).tolist() for name, mean in means.items()},
        "cosines": {
            name: torch.nn.functional.cosine_similarity(mean, reference, dim=-1).tolist()
            for name, mean in means.items()
            if reference is not None and name != "unmatched"
        },
        "topic_part": {name: topic_part(mean, materials).tolist() for name, mean in means.items()},
        "residual_norm": materials.harmful.double().norm(dim=-1).mean(0).tolist(),
        "rows": {name: len(baseline.rows) for name, baseline in found.items()},
        "angle": angle,
        "errors": errors,
        "no_errors": without,
    }


def error_bars(materials: ContrastMaterials, baseline: Baseline, *, angle: float, seed: int) -> dict[str, Any]:
    """Return the error of a baseline's difference of means r, layer by layer.

    By bootstrap, each as value, low and high: `signal` is the length of r without noise, `angle` that between r and the direction of
    endless prompts (degrees; `cone` holds 95 % of draws), `split_half` the cosine between halves of the prompts, `held_out` the length of
    r along the mean difference of held-out pairs (null without any). `p_value` is that of |r| under shuffled labels, `p_holm` the same
    adjusted over layers; `prompts_needed` is how many harmful prompts it takes to `angle` degrees. Null stands where there is no signal.

    Raises:
        UserError: where resampling cannot tell the error.
    """
    harmful, held_out = materials.harmful, materials.held_out
    bars, p = bootstrap(harmful, baseline, seed=seed), permutation_p(harmful, baseline, draws=SHUFFLES, seed=seed).tolist()
    along = component(harmful, baseline, held_out.double().mean(0).float(), seed=seed) if len(held_out) else None
    return {
        "signal": _interval(bars.signal, bars.signal_low, bars.signal_high),
        "angle": _interval(bars.angle, bars.angle_low, bars.angle_high),
        "cone": bars.cone.tolist(),
        "signal_to_noise": [value if math.isfinite(value) else None for value in bars.signal_to_noise.tolist()],
        "split_half": _interval(*split_half(harmful, baseline, seed=seed)),
        "held_out": None if along is None else _interval(*along),
        "p_value": p,
        "p_holm": list(holm(p)),
        "prompts_needed": [int(n) if math.isfinite(n) else None for n in bars.prompts_needed(angle).tolist()],
    }


def _interval(value: Float[Tensor, " layer"], low: Float[Tensor, " layer"], high: Float[Tensor, " layer"]) -> dict[str, list[float]]:
    return {"value": value.tolist(), "low": low.tolist(), "high": high.tolist()}


def topic_part(direction: Float[Tensor, "layer d_model"], materials: ContrastMaterials) -> Float[Tensor, " layer"]:
    """Return the share of a direction's squared norm that lies in the span of the topic means (less the unmatched mean)."""
    basis = row_space(topics(materials).columns.double())
    inside = (direction.double()[:, None, :] @ basis.mT).square().sum((1, 2))
    return inside / direction.double().square().sum(-1).clamp_min(1e-300)


def capture_of_pairs(recipes: Mapping[str, Recipe], held_out: Float[Tensor, "pair layer d_model"]) -> dict[str, Any]:
    """Return for each arm and layer how much of held-out pair differences its directions capture, four ways, means over pairs.

    Without held-out pairs nothing is returned.

    `best` is the largest |cos| with one direction, `span` |Q^T d| / |d| with Q the basis of all; `_squared` are the same squared.
    """
    return {name: _capture(recipe, held_out) for name, recipe in recipes.items() if len(held_out)}


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
