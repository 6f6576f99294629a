"""Difference of means: the raw refusal direction of arXiv 2406.11717 and 2601.08489, and the rule for concept atoms."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.values import Directions


def mean_rows(rows: Float[Tensor, "prompt layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """Return the mean over prompts, summed in float64, as float32."""
    return rows.double().mean(0).float()


def mean_difference(
    positive: Float[Tensor, "prompt_a layer d_model"], negative: Float[Tensor, "prompt_b layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Return mean(positive) - mean(negative) per layer, raw norm kept, float64 sums, float32 result."""
    return (positive.double().mean(0) - negative.double().mean(0)).float()


def raw_direction(harmful: Float[Tensor, "prompt_a layer d_model"], harmless: Float[Tensor, "prompt_b layer d_model"]) -> Directions:
    """Return r = mean(harmful) - mean(harmless), one direction a layer.

    Source: arXiv 2601.08489 section 3 (r_dirty), arXiv 2406.11717.
    """
    return Directions(mean_difference(harmful, harmless)[:, None, :], method="mean_difference")


def mean_of_differences(
    harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline, *, labels: Int[Tensor, " prompt"] | None = None, seed: int = 0
) -> Directions:
    """Return r = mean over prompts of (harmful - subtrahend), one direction a layer, raw norm kept; unmatched it is `raw_direction`."""
    del labels, seed
    subtrahend = torch.einsum("r,rld->ld", baseline.shares.double(), baseline.rows.double())
    return Directions((harmful.double().mean(0) - subtrahend).float()[:, None, :], method="mean_difference")
