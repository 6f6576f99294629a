"""The control for SRA: as many random directions as there are atoms, with the atoms' own norms."""

import torch
from jaxtyping import Float
from torch import Tensor


def random_atoms(atoms: Float[Tensor, "layer atom d_model"], *, seed: int) -> Float[Tensor, "layer atom d_model"]:
    """Return Gaussian directions with the norms of the given atoms: what cleaning does when the atoms mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(atoms.shape, generator=generator, dtype=torch.float64)
    norms = atoms.double().norm(dim=-1, keepdim=True)
    return (torch.nn.functional.normalize(noise, dim=-1) * norms).float()
