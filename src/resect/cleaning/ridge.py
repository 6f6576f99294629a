"""Surgical refusal ablation: ridge-regularised residual of the direction on shield and confound atoms (arXiv 2601.08489)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import KeepTerm, remove, row_space

AtomScaling = Literal["unit", "raw"]


def atom_term(atoms: Float[Tensor, "layer atom d_model"], *, lam: float, scaling: AtomScaling = "unit") -> KeepTerm:
    """Return the term S = A A^T / lambda of SRA.

    `unit` atoms have norm 1, so that lambda alone says how much of one lone atom survives: lambda / (1 + lambda).
    `raw` atoms keep their norms, so that strong concepts are protected more and lambda is in squared activation units.
    Neither paper states which it uses.
    """
    columns = torch.nn.functional.normalize(atoms, dim=-1) if scaling == "unit" else atoms
    return KeepTerm("atoms", columns, lam)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What cleaning did, per layer: the numbers behind the figures.

    `singular_values` of the scaled atom matrix; `filter_factor` = s^2 / (s^2 + lambda), the share of each singular
    direction that is taken out of r; `r_squared` of r on the span of the atoms (fraction 0-1, lambda 0);
    `cosine_before`, `cosine_after` of the direction with each atom; `coefficient` = r . a / |a|, the length of r
    along each atom (activation units).
    """

    singular_values: Float[Tensor, "layer atom"]
    filter_factor: Float[Tensor, "layer atom"]
    r_squared: Float[Tensor, " layer"]
    cosine_before: Float[Tensor, "layer all_atoms"]
    cosine_after: Float[Tensor, "layer all_atoms"]
    coefficient: Float[Tensor, "layer all_atoms"]


def spectrum(
    raw: Float[Tensor, "layer d_model"],
    cleaned: Float[Tensor, "layer d_model"],
    *,
    term: KeepTerm,
    all_atoms: Float[Tensor, "layer all_atoms d_model"],
) -> Spectrum:
    """Return the spectrum of a cleaning: `term` holds the kept atoms, `all_atoms` also the targets."""
    s = torch.linalg.svdvals(term.columns.double())
    filtered = s.square() / (s.square() + term.lam) if term.lam > 0 else (s > 0).double()
    unit = torch.nn.functional.normalize(all_atoms.double(), dim=-1)
    return Spectrum(
        singular_values=s.float(),
        filter_factor=filtered.float(),
        r_squared=r_squared(raw, term.columns),
        cosine_before=_cosines(raw, unit),
        cosine_after=_cosines(cleaned, unit),
        coefficient=(unit @ raw.double()[..., None]).squeeze(-1).float(),
    )


def r_squared(raw: Float[Tensor, "layer d_model"], columns: Float[Tensor, "layer k d_model"]) -> Float[Tensor, " layer"]:
    """Return the share of |r|^2 that lies in the span of the columns, per layer (fraction 0-1)."""
    rows = raw.double()[:, None, :]
    rest = remove(rows, row_space(columns.double()))
    share = 1 - rest.square().sum((-1, -2)) / rows.square().sum((-1, -2)).clamp_min(torch.finfo(torch.float64).tiny)
    return share.float()


def _cosines(vectors: Tensor, unit_atoms: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    return (unit_atoms @ unit[..., None]).squeeze(-1).float()
