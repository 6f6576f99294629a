"""Orthogonal to the harmless mean: what most published tools do by default, so the baseline to beat."""

from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import KeepTerm


def harmless_mean_term(mean: Float[Tensor, "layer d_model"], *, lam: float = 0.0) -> KeepTerm:
    """Return the term that keeps the mean harmless activation; lambda 0 is the `projected` direction.

    Source: projected abliteration (the "projected" and "orthogonalised" directions of the peers).
    """
    return KeepTerm("harmless_mean", mean[:, None, :], lam)
