"""Null space of the benign activations: project out their leading principal components (after AlphaEdit, arXiv 2410.02355)."""

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cleaning.formula import KeepTerm


def nullspace_term(rows: Float[Tensor, "prompt layer d_model"], *, components: int) -> KeepTerm:
    """Return the hard term that keeps the top `components` principal components of the centred benign rows.

    Raises ValueError if there are fewer rows than components.
    """
    if not 0 < components < rows.shape[0]:
        raise ValueError(f"components must lie between 1 and {rows.shape[0] - 1} (rows - 1), got {components}")
    centred = (rows.double() - rows.double().mean(0)).transpose(0, 1)
    _, _, vh = torch.linalg.svd(centred, full_matrices=False)
    return KeepTerm("benign_components", vh[:, :components].float(), 0.0)
