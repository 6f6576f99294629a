"""The whitened difference against Fisher's discriminant in closed form, few rows and many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect.directions import Baseline, baselines, scatter
from resect.directions.whitened import whitened


def lda(harmful, harmless, shrinkage):
    """Return (S + lambda I)^-1 (mean difference) with S formed whole."""
    sides = [harmful.double(), harmless.double()]
    scatter_matrix = sum((x - x.mean(0)).T @ (x - x.mean(0)) for x in sides) / sum(map(len, sides))
    lam = shrinkage * scatter_matrix.trace() / len(scatter_matrix)
    return torch.linalg.solve(scatter_matrix + lam * torch.eye(len(scatter_matrix)), sides[0].mean(0) - sides[1].mean(0))


@settings(max_examples=25)
@given(st.integers(3, 40), st.integers(3, 40), st.sampled_from([0.01, 0.1, 1.0]), st.integers(0, 99))
def test_it_is_linear_discriminant_analysis(prompts, rows, shrinkage, seed):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, 12, 12, generator=generator)
    harmful, harmless = (torch.einsum("nli,lij->nlj", torch.randn(n, 2, 12, generator=generator), mixing) for n in (prompts, rows))
    found = whitened(harmful + 2, Baseline("bulk", harmless, baselines.unmatched(prompts, rows)), shrinkage=shrinkage)
    for layer in range(2):
        expected = lda(harmful[:, layer] + 2, harmless[:, layer], shrinkage)
        assert (found.vectors[layer, 0].double() - expected).norm() < 1e-4 * expected.norm()


def test_without_shrinkage_it_separates_as_the_best_discriminant_does():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, 10)
    harmful, harmless = (torch.randn(400, 1, 10, generator=generator) * scales for _ in range(2))
    harmful = harmful + 0.3
    found = whitened(harmful, Baseline("bulk", harmless, baselines.unmatched(400, 400)), shrinkage=0.0).vectors[0, 0].double()
    expected = lda(harmful[:, 0], harmless[:, 0], 0.0)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert torch.cosine_similarity(found, (0.3 / scales.double().square()), dim=0) > 0.95


def test_rows_weigh_what_is_subtracted_of_them():
    """A matched baseline of unequal classes has the covariances of its rows repeated, with the weight of as many rows as there are."""
    generator = torch.Generator().manual_seed(1)
    harmful, rows = torch.randn(6, 1, 5, generator=generator), torch.randn(3, 1, 5, generator=generator)
    matched = Baseline("matched", rows, baselines.matched(list("aabbbb"), list("aab")))
    sides = [harmful[:, 0].double(), rows[[0, 1, 2, 2, 2, 2], 0].double()]
    means = [x.mean(0) for x in sides]
    both = (6 * means[0] + 3 * means[1]) / 9
    for columns, centres in ((scatter.within, means), (scatter.total, [both, both])):
        found = columns(harmful, matched)[0]
        parts = [(x - m).T @ (x - m) / 6 for x, m in zip(sides, centres, strict=True)]
        torch.testing.assert_close(found.T @ found, (6 * parts[0] + 3 * parts[1]) / 9)


def test_solving_is_the_inverse_and_at_zero_the_pseudo_inverse():
    generator = torch.Generator().manual_seed(2)
    columns, vectors = torch.randn(2, 4, 9, generator=generator).double(), torch.randn(2, 3, 9, generator=generator).double()
    matrix = columns.mT @ columns
    soft = scatter.solve(vectors, columns, lam=torch.tensor([0.5, 2.0]))
    expected = torch.linalg.solve(matrix + torch.tensor([0.5, 2.0]).double()[:, None, None] * torch.eye(9), vectors.mT).mT
    torch.testing.assert_close(soft, expected)
    torch.testing.assert_close(scatter.solve(vectors, columns, lam=torch.zeros(2)), vectors @ torch.linalg.pinv(matrix))
    mixed = scatter.solve(vectors, columns, lam=torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(mixed[1], soft[1])
    assert scatter.mean_eigenvalue(columns)[0] == pytest.approx(float(torch.linalg.eigvalsh(matrix[0]).mean()))
