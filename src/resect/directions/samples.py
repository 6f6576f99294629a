"""A difference of means as coefficients over its samples, whose inner products are all that error bars need."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.errors import UserError


@dataclass(frozen=True, eq=False)
class Samples:
    """Inner products of harmful rows, then of the harmless rows that are used, all less their common mean (float64).

    A direction is a combination q of the samples with coefficients that add up to 0, so |X^T q|^2 = q^T G q: no draw ever has d_model
    numbers. `groups` numbers the harmless rows; rows of one group serve the same prompts and are drawn among each other.
    """

    gram: Float[Tensor, "layer sample sample"]
    weights: Float[Tensor, "prompt row"]
    groups: Int[Tensor, " row"]

    @cached_property
    def whole(self) -> Float[Tensor, " sample"]:
        """The coefficients of the direction itself: 1 / prompts for each harmful row, minus its share for each harmless row."""
        prompts, rows = self.weights.shape
        return self.coefficients(torch.ones(1, prompts).double(), torch.ones(1, rows).double())[0]

    def coefficients(self, prompts: Float[Tensor, "draw prompt"], rows: Float[Tensor, "draw row"]) -> Float[Tensor, "draw sample"]:
        """Return the coefficients when every prompt and every harmless row counts as often as given, subtrahends averaged anew."""
        share = prompts / prompts.sum(1, keepdim=True)
        harmless = rows * ((share / (rows @ self.weights.T)) @ self.weights)
        return torch.cat([share, -harmless], dim=1)

    def norms_squared(self, draws: Float[Tensor, "draw sample"]) -> Float[Tensor, "layer draw"]:
        """Return q^T G q of every draw and layer."""
        return torch.stack([((draws @ gram) * draws).sum(1) for gram in self.gram])

    def products(self, first: Float[Tensor, "draw sample"], second: Float[Tensor, "draw sample"]) -> Float[Tensor, "layer draw"]:
        """Return p^T G q of every pair of draws and layer."""
        return torch.stack([((first @ gram) * second).sum(1) for gram in self.gram])


def samples(harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline) -> Samples:
    """Return the samples of mean(harmful - subtrahend).

    Raises:
        UserError: where resampling could not tell the error: fewer than two prompts, or one harmless row that several prompts rest on.
    """
    used = baseline.used
    if len(harmful) < 2:
        raise UserError("Error bars need at least two harmful prompts, got 1; give more.")
    serves = used.weights > 0
    _, groups = torch.unique(serves.T, dim=0, return_inverse=True)
    alone = (torch.bincount(groups)[groups] == 1) & (serves.sum(0) > 1)
    if bool(alone.any()):
        row = int(alone.nonzero()[0])
        raise UserError(
            f"One harmless prompt is all of its kind and is subtracted from {int(serves[:, row].sum())} harmful ones, so its error cannot "
            "be told; give at least two of every kind, or a partner of its own for every harmful prompt."
        )
    rows = torch.cat([harmful, used.rows]).double().transpose(0, 1)
    rows = rows - rows.mean(1, keepdim=True)
    return Samples(rows @ rows.mT, used.weights.double(), groups)
