"""Will cleaning pay? A forecast from activations alone, before any edit.

Ablating a unit direction v takes v v^T h out of the stream. What that does to benign prompts goes with E[(v^T h)^2] over their
activations h at the study's position, summed over layers; what it does to refusal goes with the share of the raw direction
that v still holds, cos(v, r)^2. KL is quadratic in small changes, so the drift per unit of effect predicts KL at matched refusal:

    predicted_drift(v) = sum_l E[(v_l^T h_l)^2] / (mean_l cos(v_l, r_l)^2)^2

and the predicted gain of cleaning is predicted_drift(raw) / predicted_drift(cleaned). It was chosen among the other quantities
below on the zoo (docs/results.md), where it ranks the gains only roughly: a hint, not a promise.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect import cleaning
from resect.studies.materials import Materials

QUANTITY = "predicted_gain"
THRESHOLD = 1.1
"""Cleaning is expected to pay above this predicted ratio of drifts, where validation may choose one layer's direction for all layers.

With each layer's own direction cleaning paid on every organism of the zoo, and nothing known beforehand said how much.
"""


def forecast(materials: Materials, cleaned: Float[Tensor, "layer d_model"], *, lam: float) -> dict[str, Any]:
    """Return the forecast for the direction cleaned at lambda: value, threshold, sentence, and the other quantities."""
    values = quantities(materials, cleaned)
    value = values[QUANTITY]
    pays = value >= THRESHOLD
    sentence = (
        f"Cleaning is expected {'to pay' if pays else 'not to pay'} here: predicted benign drift of the raw direction is "
        f"{value:.2f} times that of the cleaned one at equal effect (threshold {THRESHOLD}; for one layer's direction used everywhere)."
    )
    others = {name: v for name, v in values.items() if name != QUANTITY}
    return {
        "quantity": QUANTITY,
        "value": value,
        "lambda": lam,
        "threshold": THRESHOLD,
        "pays": pays,
        "sentence": sentence,
        "others": others,
    }


def quantities(materials: Materials, cleaned: Float[Tensor, "layer d_model"]) -> dict[str, float]:
    """Return every candidate quantity; all use the extraction prompts and atoms only."""
    raw = materials.raw
    mean = materials.harmless.double().mean(0).float()
    kept = torch.nn.functional.normalize(materials.kept_atoms, dim=-1)
    drift_raw, drift_clean = (predicted_drift(v, raw, materials.updates) for v in (raw, cleaned))
    return {
        "predicted_gain": predicted_drift(raw, raw, materials.harmless) / predicted_drift(cleaned, raw, materials.harmless),
        "update_drift_ratio": drift_raw / drift_clean,
        "update_drift_raw": drift_raw,
        "worst_layer_drift": worst_layer_drift(raw, materials.updates),
        "worst_layer_gain": worst_layer_drift(raw, materials.updates) / worst_layer_drift(cleaned, materials.updates),
        "harmless_mean_share": float(_cosine(raw, mean).square().mean()),
        "r_squared": float(cleaning.r_squared(raw, kept).mean()),
        "removed_share": float((1 - _cosine(raw, cleaned).square()).mean()),
    }


def worst_layer_drift(vectors: Float[Tensor, "layer d_model"], benign: Float[Tensor, "n layer d_model"]) -> float:
    """Return the greatest share of benign update energy that one layer's direction takes out (fraction 0-1)."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    moved = torch.einsum("nld,ld->nl", benign.double(), unit).square().mean(0)
    return float((moved / benign.double().square().sum(-1).mean(0)).max())


def predicted_drift(
    vectors: Float[Tensor, "layer d_model"], raw: Float[Tensor, "layer d_model"], benign: Float[Tensor, "n layer d_model"]
) -> float:
    """Return sum_l E[(v_l^T h_l)^2] over the square of the mean share of r that v holds (squared activation units).

    `benign` holds activations, or block updates where that is what an edit takes its component from.
    """
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    moved = torch.einsum("nld,ld->nl", benign.double(), unit).square().mean(0).sum()
    return float(moved / _cosine(vectors, raw).square().mean().square())


def _cosine(a: Float[Tensor, "layer d_model"], b: Float[Tensor, "layer d_model"]) -> Float[Tensor, " layer"]:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).float()
