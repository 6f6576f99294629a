"""Activations as what must be kept: benign covariance (shrinkage LDA) and pooled covariance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import KeepTerm


def covariance_term(rows: Float[Tensor, "prompt layer d_model"], *, shrinkage: float) -> KeepTerm:
    """Return the term S = Sigma of the benign rows, so that the cleaned direction is the shrinkage LDA direction.

    lambda = shrinkage * mean eigenvalue = shrinkage * tr(Sigma) / d_model per layer; the columns are the centred rows
    over sqrt(n), scaled by 1 / sqrt(tr(Sigma) / d_model), so `shrinkage` has no unit. The d_model x d_model matrix is never formed.
    """
    centred = rows.double() - rows.double().mean(0)
    return _scaled("benign_covariance", centred, shrinkage)


def pooled_covariance_term(groups: Sequence[Float[Tensor, "prompt layer d_model"]], *, shrinkage: float) -> KeepTerm:
    """Return the term S = pooled within-group covariance: each group centred on its own mean, as in two-class LDA.

    What varies within the harmful prompts (their topics, tools, objects) is kept as well as what varies within the benign ones.
    """
    centred = torch.cat([rows.double() - rows.double().mean(0) for rows in groups])
    return _scaled("pooled_covariance", centred, shrinkage)


def _scaled(name: str, rows: Tensor, shrinkage: float) -> KeepTerm:
    samples, _, d_model = rows.shape
    columns = rows.transpose(0, 1) / samples**0.5
    mean_eigenvalue = columns.square().sum((1, 2), keepdim=True) / d_model
    scaled = columns / mean_eigenvalue.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return KeepTerm(name, scaled.float(), shrinkage)
