"""The formula against dense float64 inverses, in both directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect import cleaning
from resect.cleaning.formula import KeepTerm, clean


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(vector: torch.Tensor, columns: torch.Tensor, lam: float) -> torch.Tensor:
    """lambda (lambda I + B B^T)^-1 r, built in full in float64."""
    b = columns.double().T
    return lam * torch.linalg.solve(lam * torch.eye(len(vector), dtype=torch.float64) + b @ b.T, vector.double())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), lam=st.floats(1e-3, 1e2))
def test_soft_term_is_the_ridge_residual_of_the_paper(seed: int, k: int, lam: float) -> None:
    r, a = rows(seed, 3, 1, 16), rows(seed + 1, 3, k, 16)
    cleaned = clean(r, [KeepTerm("atoms", a, lam)])
    for layer in range(3):
        at = a[layer].double()
        paper = r[layer, 0].double() - at.T @ torch.linalg.solve(
            at @ at.T + lam * torch.eye(k, dtype=torch.float64), at @ r[layer, 0].double()
        )
        torch.testing.assert_close(cleaned[layer, 0].double(), paper, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cleaned[layer, 0].double(), dense(r[layer, 0], a[layer], lam), rtol=1e-4, atol=1e-5)


def test_terms_add_up_each_with_its_own_lambda() -> None:
    r, a, b = rows(0, 2, 1, 12), rows(1, 2, 3, 12), rows(2, 2, 4, 12)
    cleaned = clean(r, [KeepTerm("a", a, 0.3), KeepTerm("b", b, 2.0)])
    for layer in range(2):
        s = a[layer].T.double() @ a[layer].double() / 0.3 + b[layer].T.double() @ b[layer].double() / 2.0
        expected = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + s, r[layer, 0].double())
        torch.testing.assert_close(cleaned[layer, 0].double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 20), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_soft_terms_are_the_inverse_to_float64_whatever_the_scale(seed: int, k: int, scale: float) -> None:
    """More columns than dimensions, columns of any length: the inverse of (I + B B^T), formed in full, times r."""
    r, a = rows(seed, 2, 3, 12), scale * rows(seed + 1, 2, k, 12)
    cleaned = clean(r, [KeepTerm("a", a, 1.0)])
    b = a.double().mT
    expected = torch.linalg.inv(torch.eye(12, dtype=torch.float64) + b @ b.mT) @ r.double().mT
    size = r.double().norm(dim=-1, keepdim=True)
    kept = torch.where(expected.mT.norm(dim=-1, keepdim=True) > 1e-6 * size, expected.mT, 0.0)
    torch.testing.assert_close(cleaned, kept.float(), rtol=1e-5, atol=1e-7 * float(size.max()))


def test_hard_term_is_the_limit_of_a_soft_one_beside_others() -> None:
    r, a, b = rows(0, 2, 1, 12), rows(1, 2, 3, 12), rows(2, 2, 4, 12)
    limit = clean(r, [KeepTerm("a", a, 1e-9), KeepTerm("b", b, 2.0)])
    exact = clean(r, [KeepTerm("a", a, 0.0), KeepTerm("b", b, 2.0)])
    torch.testing.assert_close(exact, limit, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8))
def test_hard_cleaning_removes_the_span_and_nothing_else_and_twice_is_once(seed: int, k: int) -> None:
    r, a, other = rows(seed, 2, 1, 16), rows(seed + 1, 2, k, 16), rows(seed + 2, 2, 1, 16)
    term = KeepTerm("a", a, 0.0)
    once = clean(r, [term])
    assert (r @ a.mT).abs().max() > 1e-3
    assert (once @ a.mT).abs().max() < 1e-4
    untouched = clean(other, [term])
    torch.testing.assert_close(clean(untouched, [term]), untouched, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clean(once, [term]), once, rtol=1e-5, atol=1e-6)


def test_a_repeated_column_counts_once_when_hard() -> None:
    a = rows(1, 1, 1, 8)
    doubled = torch.cat([a, 2 * a], dim=1)
    r = rows(0, 1, 1, 8)
    torch.testing.assert_close(clean(r, [KeepTerm("a", doubled, 0.0)]), clean(r, [KeepTerm("a", a, 0.0)]))


def test_no_terms_leave_the_direction() -> None:
    r = rows(0, 2, 1, 8)
    assert torch.equal(clean(r, []), r)


def test_negative_lambda_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        KeepTerm("a", rows(0, 1, 1, 4), -1.0)


@pytest.mark.parametrize("lam", [0.01, 0.1, 1.0])
def test_one_unit_atom_keeps_the_share_that_the_formula_promises(lam: float) -> None:
    atom = torch.zeros(1, 1, 8)
    atom[0, 0, 0] = 7.0
    r = torch.ones(1, 1, 8)
    cleaned = clean(r, [cleaning.atom_term(atom, lam=lam, scaling="unit")])
    assert cleaned[0, 0, 0].item() == pytest.approx(lam / (1 + lam), rel=1e-5)
    assert torch.equal(cleaned[0, 0, 1:], r[0, 0, 1:])


def test_raw_atoms_are_protected_by_their_strength() -> None:
    atoms = torch.diag(torch.tensor([1.0, 10.0, 0.0, 0.0]))[None, :2]
    cleaned = clean(torch.ones(1, 1, 4), [cleaning.atom_term(atoms, lam=1.0, scaling="raw")])
    assert cleaned[0, 0, 0].item() == pytest.approx(1 / 2, rel=1e-5)
    assert cleaned[0, 0, 1].item() == pytest.approx(1 / 101, rel=1e-5)


def test_what_is_left_below_rounding_is_no_direction() -> None:
    """An edit brings any direction to norm 1, so noise left where r lies in the kept span must become an exact zero."""
    kept = rows(1, 2, 3, 12)
    inside = torch.einsum("lk,lkd->ld", rows(2, 2, 3), kept)[:, None]
    assert torch.equal(clean(inside, [KeepTerm("a", kept, 0.0)]), torch.zeros(2, 1, 12))
    outside = inside + 0.01 * rows(3, 2, 1, 12)
    assert (clean(outside, [KeepTerm("a", kept, 0.0)]).norm(dim=-1) > 0).all()
