"""Per-layer strength: a profile with peak 1, which an edit multiplies by its strength gamma."""

import torch
from jaxtyping import Float
from torch import Tensor


def flat(layers: int) -> Float[Tensor, " layer"]:
    """Return the profile that treats all layers alike."""
    return torch.ones(layers)


def energy(atom: Float[Tensor, "layer d_model"]) -> Float[Tensor, " layer"]:
    """Return SRA's profile: gamma_l proportional to |a_l|^2 (raw norm of one atom, Deception in the paper), peak 1.

    Source: arXiv 2601.08489. The constant is not published; here the peak is 1 and the study chooses the strength.
    """
    squared = atom.double().square().sum(-1)
    return (squared / squared.max().clamp_min(torch.finfo(torch.float64).tiny)).float()


def window(profile: Float[Tensor, " layer"], *, first: int, last: int) -> Float[Tensor, " layer"]:
    """Return the profile with all layers outside first..last (both included) set to 0."""
    index = torch.arange(len(profile))
    return torch.where((index >= first) & (index <= last), profile, 0.0)
