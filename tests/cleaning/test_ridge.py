"""The spectrum on planted truth."""

import pytest
import torch

from resect import cleaning


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """A direction that is 3 of a target, 4 of a shield: R^2 on the shield is 16 / 25."""
    raw = torch.zeros(1, 6)
    raw[0, 0], raw[0, 1] = 3.0, 4.0
    atoms = torch.eye(6)[None, :2] * torch.tensor([2.0, 5.0])[None, :, None]
    return raw, atoms


def test_spectrum_reads_off_the_planted_mixture() -> None:
    raw, atoms = planted()
    term = cleaning.atom_term(atoms[:, 1:], lam=0.1, scaling="unit")
    cleaned = cleaning.clean(raw[:, None], [term])[:, 0]
    seen = cleaning.spectrum(raw, cleaned, term=term, all_atoms=atoms)
    assert seen.r_squared.item() == pytest.approx(16 / 25, rel=1e-5)
    assert seen.filter_factor.item() == pytest.approx(1 / 1.1, rel=1e-5)
    assert seen.cosine_before[0].tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert seen.coefficient[0].tolist() == pytest.approx([3.0, 4.0], rel=1e-5)
    left = 4 * 0.1 / 1.1
    assert seen.cosine_after[0, 1].item() == pytest.approx(left / (9 + left**2) ** 0.5, rel=1e-4)


def test_a_direction_off_the_atoms_has_no_r_squared_and_is_left_alone() -> None:
    _, atoms = planted()
    raw = torch.zeros(1, 6)
    raw[0, 5] = 2.0
    term = cleaning.atom_term(atoms, lam=0.1)
    assert cleaning.r_squared(raw, term.columns).item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(cleaning.clean(raw[:, None], [term])[:, 0], raw)


def test_random_atoms_keep_norms_and_lose_meaning() -> None:
    atoms = torch.randn(3, 5, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4, 5])[None, :, None]
    control = cleaning.random_atoms(atoms, seed=1)
    torch.testing.assert_close(control.norm(dim=-1), atoms.norm(dim=-1))
    assert torch.nn.functional.cosine_similarity(atoms, control, dim=-1).abs().max() < 0.25
    assert torch.equal(control, cleaning.random_atoms(atoms, seed=1))
    assert not torch.equal(control, cleaning.random_atoms(atoms, seed=2))
