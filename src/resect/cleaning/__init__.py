"""Cleaning a direction of what must be kept: one formula, one method a file."""

from resect.cleaning.covariance import covariance_term, pooled_covariance_term
from resect.cleaning.formula import KeepTerm, clean
from resect.cleaning.harmless_mean import harmless_mean_term
from resect.cleaning.nullspace import nullspace_term
from resect.cleaning.random_atoms import random_atoms
from resect.cleaning.ridge import AtomScaling, Spectrum, atom_term, r_squared, spectrum

__all__ = [
    "AtomScaling",
    "KeepTerm",
    "Spectrum",
    "atom_term",
    "clean",
    "covariance_term",
    "harmless_mean_term",
    "nullspace_term",
    "pooled_covariance_term",
    "r_squared",
    "random_atoms",
    "spectrum",
]
