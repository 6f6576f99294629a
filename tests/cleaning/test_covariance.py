"""Covariance terms against scikit-free LDA in float64."""

import pytest
import torch

from resect import cleaning


def benign(samples: int = 40, d_model: int = 8) -> torch.Tensor:
    scale = torch.linspace(0.2, 3.0, d_model)
    return torch.randn(samples, 2, d_model, generator=torch.Generator().manual_seed(0)) * scale + 1.5


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).min().item()


@pytest.mark.parametrize("shrinkage", [0.01, 0.5])
def test_covariance_term_gives_shrinkage_lda(shrinkage: float) -> None:
    rows, r = benign(), torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    cleaned = cleaning.clean(r, [cleaning.covariance_term(rows, shrinkage=shrinkage)])
    for layer in range(2):
        x = rows[:, layer].double()
        sigma = torch.cov(x.T, correction=0)
        lam = shrinkage * sigma.trace() / 8
        lda = torch.linalg.solve(sigma + lam * torch.eye(8, dtype=torch.float64), r[layer, 0].double())
        assert cosine(cleaned[layer, 0], lda) == pytest.approx(1.0, abs=1e-6)


def test_nullspace_removes_the_leading_component_only() -> None:
    rows = benign()
    r = torch.ones(2, 1, 8)
    cleaned = cleaning.clean(r, [cleaning.nullspace_term(rows, components=2)])
    for layer in range(2):
        x = rows[:, layer].double()
        vh = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh
        assert (vh[:2] @ cleaned[layer, 0].double()).abs().max() < 1e-5
        torch.testing.assert_close(vh[2:] @ cleaned[layer, 0].double(), vh[2:] @ r[layer, 0].double(), rtol=1e-4, atol=1e-5)


def test_nullspace_needs_more_rows_than_components() -> None:
    with pytest.raises(ValueError, match="between 1 and 39"):
        cleaning.nullspace_term(benign(), components=40)


def test_projected_is_orthogonal_to_the_harmless_mean() -> None:
    rows, r = benign(), torch.ones(2, 1, 8)
    mean = rows.mean(0)
    cleaned = cleaning.clean(r, [cleaning.harmless_mean_term(mean)])
    assert cosine(r[:, 0], mean) > 0.1
    assert abs(torch.nn.functional.cosine_similarity(cleaned[:, 0], mean, dim=-1)).max() < 1e-6
