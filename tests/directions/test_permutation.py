"""The permutation null: uniform without an effect, small with one, in every design."""

import pytest
import torch
from scipy import stats

from resect.directions import Baseline, baselines
from resect.directions.permutation import comparable, permutation_p


def p_values(design, *, effect=0.0, layers=300, n=20, seed=3):
    generator = torch.Generator().manual_seed(seed)
    keys = {"unmatched": [0] * n, "matched": [k % 4 for k in range(n)], "paired": list(range(n))}[design]
    topics = 3 * torch.randn(n, layers, 6, generator=generator)[torch.tensor(keys)]
    harmful, rows = (torch.randn(n, layers, 6, generator=generator) + topics for _ in range(2))
    return permutation_p(harmful + effect, Baseline(design, rows, baselines.matched(keys, keys)), draws=199)


@pytest.mark.parametrize("design", ["unmatched", "matched", "paired"])
def test_p_is_uniform_without_an_effect_and_small_with_one(design):
    null = p_values(design)
    assert stats.kstest(null.numpy(), "uniform").pvalue > 0.05
    assert float((null <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert null.min() >= 1 / 200
    assert (p_values(design, effect=1.0, layers=30) <= 0.02).all()


def test_shuffling_across_topics_would_hide_what_matching_shows():
    """Labels are shuffled within what is compared: the same rows, unmatched, hide a small effect among large topics."""
    generator = torch.Generator().manual_seed(0)
    topics = 20 * torch.randn(20, 30, 6, generator=generator)
    harmful, rows = (torch.randn(20, 30, 6, generator=generator) + topics for _ in range(2))
    paired, bulk = (
        permutation_p(harmful + 1, Baseline("x", rows, w), draws=199) for w in (torch.eye(20).double(), baselines.unmatched(20, 20))
    )
    assert paired.max() < 0.02
    assert bulk.min() > 0.5


def test_what_is_connected_is_comparable():
    assert comparable(baselines.unmatched(2, 3)).tolist() == [0] * 5
    assert comparable(baselines.matched(list("aab"), list("ab"))).tolist() == [0, 0, 1, 0, 1]
