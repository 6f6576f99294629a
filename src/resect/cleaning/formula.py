"""The one cleaning formula: shrink a direction wherever something that must be kept lives.

    cleaned = (I + sum_i B_i B_i^T / lambda_i)^-1 r

Each term has columns B_i (what to keep) and its own lambda_i > 0; lambda_i = 0 is the limit that projects the columns
out exactly. With one term this is r - B (B^T B + lambda I)^-1 B^T r = lambda (lambda I + B B^T)^-1 r (Woodbury), the
ridge residual of arXiv 2601.08489; scaling is irrelevant to an edit, which normalises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resect.directions.scatter import RANK_TOLERANCE, solve


@dataclass(frozen=True, eq=False)
class KeepTerm:
    """One thing to keep: `columns` span it (rows of the tensor are the columns of B), `lam` says how softly.

    `lam` is in the squared unit of the columns: a direction in which B has singular value s survives with the
    share lam / (s^2 + lam). `lam = 0` keeps the span exactly.
    """

    name: str
    columns: Float[Tensor, "layer k d_model"]
    lam: float

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise ValueError(f"lambda of keep term {self.name!r} must be 0 or more, got {self.lam}")


def clean(vectors: Float[Tensor, "layer direction d_model"], terms: Sequence[KeepTerm]) -> Float[Tensor, "layer direction d_model"]:
    """Return (I + sum_i B_i B_i^T / lambda_i)^-1 r per layer and direction; float64 inside, float32 out.

    Hard terms (lambda 0) go first: the limit is P (I + P S P)^-1 P r with P the projector off their columns.
    """
    cleaned = vectors.double()
    hard = [t.columns.double() for t in terms if t.lam == 0]
    soft = [t.columns.double() / t.lam**0.5 for t in terms if t.lam > 0]
    if hard:
        basis = row_space(torch.cat(hard, dim=1))
        cleaned = remove(cleaned, basis)
        soft = [remove(columns, basis) for columns in soft]
    if soft:
        cleaned = solve(cleaned, torch.cat(soft, dim=1), lam=torch.ones(len(cleaned)))
    # What is left below rounding of the input is no direction, and an edit would blow it up to norm 1.
    lost = cleaned.norm(dim=-1, keepdim=True) <= RANK_TOLERANCE * vectors.double().norm(dim=-1, keepdim=True)
    return cleaned.masked_fill(lost, 0.0).float()


def row_space(columns: Float[Tensor, "layer k d_model"]) -> Float[Tensor, "layer k2 d_model"]:
    """Return orthonormal rows spanning the columns, per layer; rows beyond the numerical rank are zero."""
    _, s, vh = torch.linalg.svd(columns, full_matrices=False)
    real = s > RANK_TOLERANCE * s.amax(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    return vh * real[..., None]


def remove(vectors: Float[Tensor, "layer n d_model"], basis: Float[Tensor, "layer k d_model"]) -> Float[Tensor, "layer n d_model"]:
    """Return the vectors without their part in the orthonormal rows of `basis`."""
    return vectors - (vectors @ basis.mT) @ basis
