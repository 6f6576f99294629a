"""Least-squares concept erasure (LEACE, arXiv 2306.03819): an oblique pair, read along one side, removed along the other."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions import scatter
from resect.directions.baselines import Baseline
from resect.directions.class_means import class_means
from resect.directions.mean_difference import mean_of_differences
from resect.directions.values import Directions
from resect.directions.whitened import SHRINKAGE


def leace(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    shrinkage: float = SHRINKAGE,
    per_class: bool = False,
) -> Directions:
    """Return U as `vectors` and C as `read` of the erasure x - U C^T (x - mean), one direction a layer, or one for each class.

    U spans the differences T between sides (or classes and their subtrahends), C spans S^-1 T with S the covariance of both sides, and
    C^T U = I: the change of least mean square after which no linear probe tells the sides apart (shrinkage 0, unmatched; then it is
    LEACE). U takes the place of Sigma_xz, which spans the same; with T S^-1 T^T = V diag(s^2) V^T, U = T V and C = S^-1 T V diag(s^-2).
    Any C with C^T U = I erases as much; shrinkage only decides what else is touched.
    """
    find = class_means if per_class else mean_of_differences
    targets = find(harmful, baseline, labels=labels, seed=seed).vectors.double()
    columns = scatter.total(harmful, baseline)
    solved = scatter.solve(targets, columns, lam=shrinkage * scatter.mean_eigenvalue(columns))
    energy, rotation = torch.linalg.eigh(solved @ targets.mT)
    energy, rotation = energy.flip(-1), rotation.flip(-1)
    vectors = rotation.mT @ targets
    read = rotation.mT @ solved / energy[..., None]
    method = "leace_classes" if per_class else "leace"
    return Directions(vectors.float(), method, importance=energy.float(), read=read.float())


leace_classes = partial(leace, per_class=True)
