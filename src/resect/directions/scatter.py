"""The scatter of rows about their means, and solving with it in the small space of the samples."""

import torch
from jaxtyping import Float
from torch import Tensor

from resect.directions.baselines import Baseline

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are directions that float32 rows or columns do not really have."""


def solve(
    vectors: Float[Tensor, "layer k d_model"], columns: Float[Tensor, "layer n d_model"], *, lam: Float[Tensor, " layer"]
) -> Float[Tensor, "layer k d_model"]:
    """Return (B B^T + lambda I)^-1 v per layer, float64, by a thin SVD of B (`columns` holds B's columns as rows).

    Where lambda is 0 it is the pseudo-inverse: what lies outside the span of B is dropped.
    """
    _, s, vh = torch.linalg.svd(columns.double(), full_matrices=False)
    lam = lam.double()[:, None, None]
    s = s[:, None, :]
    real = s > RANK_TOLERANCE * s.amax(-1, keepdim=True)
    seen = vectors.double() @ vh.mT
    outside = torch.where(lam > 0, (vectors.double() - seen @ vh) / lam.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    keep = real | (lam > 0)
    return torch.where(keep, seen / torch.where(keep, s.square() + lam, 1.0), 0.0) @ vh + outside


def mean_eigenvalue(columns: Float[Tensor, "layer n d_model"]) -> Float[Tensor, " layer"]:
    """Return tr(B B^T) / d_model per layer: the unit in which shrinkage is given."""
    return columns.double().square().sum((1, 2)) / columns.shape[2]


def within(harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline) -> Float[Tensor, "layer n d_model"]:
    """Return the columns of the pooled within-side covariance: every row minus its side's mean, over the root of the number of rows."""
    mass = _mass(harmful, baseline)
    means = mass @ _rows(harmful, baseline).transpose(0, 1) / mass.sum(1, keepdim=True)
    side = (torch.arange(mass.shape[1]) >= len(harmful)).long()
    return _columns(_rows(harmful, baseline).transpose(0, 1) - means[:, side], mass.sum(0))


def total(harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline) -> Float[Tensor, "layer n d_model"]:
    """Return the columns of the covariance of both sides together: every row minus the mean of all."""
    mass = _mass(harmful, baseline).sum(0)
    rows = _rows(harmful, baseline).transpose(0, 1)
    return _columns(rows - (mass @ rows)[:, None, :], mass)


def _rows(harmful: Tensor, baseline: Baseline) -> Tensor:
    return torch.cat([harmful, baseline.rows]).double()


def _mass(harmful: Tensor, baseline: Baseline) -> Tensor:
    """Return [side, row]: each row's weight (all together 1), zero on the other side; harmless rows weigh what is subtracted of them."""
    n, m = len(harmful), len(baseline.rows)
    mass = torch.zeros(2, n + m, dtype=torch.float64)
    mass[0, :n] = 1 / (n + m)
    mass[1, n:] = baseline.shares.double() * m / (n + m)
    return mass


def _columns(centred: Tensor, mass: Tensor) -> Tensor:
    return centred * mass.sqrt()[None, :, None]
