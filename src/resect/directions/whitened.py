"""The whitened difference of means: Fisher's linear discriminant with a shrunk covariance."""

from jaxtyping import Float, Int
from torch import Tensor

from resect.directions import scatter
from resect.directions.baselines import Baseline
from resect.directions.mean_difference import mean_of_differences
from resect.directions.values import Directions

SHRINKAGE = 0.1
"""Unpublished anywhere for refusal; a tenth of the mean eigenvalue holds down what few prompts cannot tell from noise."""


def whitened(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    shrinkage: float = SHRINKAGE,
) -> Directions:
    """Return (S + lambda I)^-1 r with r the mean difference and S the pooled within-side covariance; one direction a layer.

    lambda = shrinkage * tr(S) / d_model; shrinkage 0 is the pseudo-inverse. Harmless rows weigh what the baseline subtracts of them.
    The vector reads in units of one over the activations: w . (difference of means) is the squared Mahalanobis distance of the sides.
    """
    raw = mean_of_differences(harmful, baseline, labels=labels, seed=seed).vectors
    columns = scatter.within(harmful, baseline)
    found = scatter.solve(raw, columns, lam=shrinkage * scatter.mean_eigenvalue(columns))
    return Directions(found.float(), "whitened")
