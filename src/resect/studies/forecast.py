"""Will cleaning pay? A forecast from the unedited model alone, by linear response.

For each place and softness that validation will try, backward passes of the base model give the slope of the refusal log-odds on
harmful prompts and the slopes of the likeliest tokens' log-probabilities on harmless ones (`evaluation/slopes.py`). To first order

    s* = mean(log-odds - cut) / - mean(d log-odds / ds)            the strength at which refusals should be gone
    KL* = s*^2 / 2 E[sum_a p_a (d log p_a / ds)^2]                 KL there: Fisher information along the edit, in nats

An arm is predicted at its best place, as validation will choose it. The predicted gain is KL* of the raw direction at flat strength
(`standard`) over KL* of the study's method (`sra`); above 1 cleaning is expected to pay. Nothing is fitted. How well it ranks measured
gains is in docs/results.md.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect import cleaning
from resect.config import SRAConfig
from resect.edit.plan import EditPlan
from resect.evaluation.refusal import log_odds
from resect.evaluation.slopes import Numbers, slopes
from resect.studies.behaviour import Asked, Behaviour
from resect.studies.lab import Lab
from resect.studies.materials import Materials

QUANTITY = "predicted_gain"
THRESHOLD = 1.0
BACKWARD = 8
"""A backward pass keeps what a forward pass lets go: it gets so many times fewer tokens."""

LABELS = 8
"""Likeliest tokens whose log-probabilities are followed; the rest of the vocabulary adds little to the Fisher information."""


@dataclass(frozen=True)
class Prediction:
    """Strength at which refusals should be gone and the KL there (nats), None where the slope does not lead there."""

    strength: float | None
    kl: float | None


def predict(lab: Lab[SRAConfig], behaviour: Behaviour, plans: list[EditPlan]) -> tuple[Prediction, ...]:
    """Return the prediction for each plan at unit strength, from the validation prompts of the unedited model."""
    harmful, harmless = behaviour.harmful["validation"], behaviour.harmless["validation"]
    tokens = max(1, lab.config.batch_tokens // BACKWARD)

    count = min(LABELS, harmless.logprobs.shape[1])

    def odds(logprobs: Float[Tensor, "sample vocab"]) -> list[Tensor]:
        return [log_odds(logprobs, behaviour.tokens)]

    def likeliest(logprobs: Float[Tensor, "sample vocab"]) -> list[Tensor]:
        top = logprobs.detach().topk(count, dim=-1).indices
        return [logprobs.gather(1, top[:, j : j + 1])[:, 0] for j in range(count)]

    def along(asked: Asked, numbers: Numbers) -> Float[Tensor, "number prompt plan"]:
        return slopes(lab.model, lab.writers, lab.render(asked.prompts), plans, numbers, batch_tokens=tokens)

    falls = -along(harmful, odds)[0].mean(0)
    excess = (log_odds(harmful.logprobs, behaviour.tokens) - behaviour.cut).mean()
    mass = harmless.logprobs.double().topk(count, dim=-1).values.exp()
    curvature = (mass.T[..., None] * along(harmless, likeliest).square()).sum(0).mean(0)
    return tuple(_prediction(float(excess), float(fall), float(bend)) for fall, bend in zip(falls, curvature, strict=True))


def _prediction(excess: float, fall: float, curvature: float) -> Prediction:
    if fall <= 0 or excess <= 0:
        return Prediction(None, None)
    strength = excess / fall
    return Prediction(strength, strength**2 / 2 * curvature)


def forecast(
    lab: Lab[SRAConfig], behaviour: Behaviour, raw: list[EditPlan], clean: list[EditPlan], known: dict[str, float]
) -> dict[str, Any]:
    """Return the forecast as `study.json` holds it: value, threshold, sentence, the two predictions, other known quantities.

    `raw` and `clean` are the plans of `standard` and `sra` at unit strength, one for every place that validation tries.
    """
    try:
        predicted = predict(lab, behaviour, [*raw, *clean])
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _document(None, None, f"No forecast: the network cannot be differentiated ({reason}).", pays=None, known=known)
    first, second = (_best(found) for found in (predicted[: len(raw)], predicted[len(raw) :]))
    value = first.kl / second.kl if first and second and first.kl and second.kl else None
    pays = second is not None and (first is None or (value is not None and value > THRESHOLD))
    sentence = f"Cleaning is expected {'to pay' if pays else 'not to pay'} here: {_reason(first, second, value)}."
    return _document(first, second, sentence, pays=pays, known=known) | {"value": value}


def _best(found: Sequence[Prediction]) -> Prediction | None:
    return min((p for p in found if p.kl is not None), key=lambda p: p.kl or 0.0, default=None)


def _document(
    raw: Prediction | None, clean: Prediction | None, sentence: str, *, pays: bool | None, known: dict[str, float]
) -> dict[str, Any]:
    best = {arm: asdict(one) if one else None for arm, one in (("standard", raw), ("sra", clean))}
    return {"quantity": QUANTITY, "value": None, "threshold": THRESHOLD, "pays": pays, "sentence": sentence, "best": best, "others": known}


def _reason(raw: Prediction | None, clean: Prediction | None, value: float | None) -> str:
    if clean is None:
        return "to first order the cleaned direction does not lower the refusal log-odds at any place"
    if raw is None:
        return "to first order the raw direction does not lower the refusal log-odds at any place, the cleaned one does"
    return f"to first order KL of the raw direction is {value or 0.0:.2f} times that of SRA where the refusals should be gone"


def quantities(materials: Materials, cleaned: Float[Tensor, "layer d_model"]) -> dict[str, float]:
    """Return what the forecast is compared with, from activations and atoms only; `cleaned` is SRA's direction.

    `activation_gain` is the ratio of sum_l E[(v_l^T h_l)^2] over the squared share of r that v holds, raw over cleaned.
    """
    raw = materials.raw
    mean = materials.harmless.double().mean(0).float()
    kept = torch.nn.functional.normalize(materials.kept_atoms, dim=-1)
    drift_raw, drift_clean = (activation_drift(v, raw, materials.harmless) for v in (raw, cleaned))
    return {
        "activation_gain": drift_raw / drift_clean,
        "harmless_mean_share": float(_cosine(raw, mean).square().mean()),
        "r_squared": float(cleaning.r_squared(raw, kept).mean()),
        "removed_share": float((1 - _cosine(raw, cleaned).square()).mean()),
    }


def activation_drift(
    vectors: Float[Tensor, "layer d_model"], raw: Float[Tensor, "layer d_model"], benign: Float[Tensor, "n layer d_model"]
) -> float:
    """Return sum_l E[(v_l^T h_l)^2] over the square of the mean share of r that v holds (squared activation units)."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    moved = torch.einsum("nld,ld->nl", benign.double(), unit).square().mean(0).sum()
    return float(moved / _cosine(vectors, raw).square().mean().square())


def _cosine(a: Float[Tensor, "layer d_model"], b: Float[Tensor, "layer d_model"]) -> Float[Tensor, " layer"]:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).float()
