"""Baselines as weights: every kind by hand, and what cannot be matched is named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.directions import Baseline, baselines, mean_of_differences, raw_direction
from resect.errors import UserError

HARMFUL, HARMLESS = ["a", "a", "b"], ["a", "b", "b", "c"]
ROWS = torch.tensor([[1.0], [2.0], [4.0], [9.0]])[:, None, :]


def values(weights):
    return Baseline("x", ROWS, weights).subtrahends.flatten().tolist()


def test_each_kind_subtracts_what_it_says():
    assert values(baselines.unmatched(3, 4)) == [4, 4, 4]
    assert values(baselines.matched(HARMFUL, HARMLESS)) == [1, 1, 3]
    assert values(baselines.other(HARMFUL, HARMLESS)) == [5, 5, 5]
    half = baselines.mixed(baselines.matched(HARMFUL, HARMLESS), baselines.unmatched(3, 4), share=0.5)
    assert values(half) == [2.5, 2.5, 3.5]


def test_rows_of_no_prompt_are_left_out_and_nothing_changes():
    whole = Baseline("x", ROWS, baselines.matched(HARMFUL, HARMLESS))
    assert len(whole.used.rows) == 3
    assert torch.equal(whole.used.subtrahends, whole.subtrahends)
    assert torch.equal(whole.used.used.rows, whole.used.rows)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_an_unmatched_baseline_is_the_difference_of_means(prompts, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    harmful, harmless = (torch.randn(n, 2, 5, generator=generator) + 100 for n in (prompts, rows))
    found = mean_of_differences(harmful, Baseline("bulk", harmless, baselines.unmatched(prompts, rows)))
    assert torch.allclose(found.vectors, raw_direction(harmful, harmless).vectors, atol=1e-6)


def test_what_cannot_be_matched_is_named():
    with pytest.raises(UserError, match=r"'d' \(and 1 more\) has no harmless prompt to be matched with; add"):
        baselines.matched(["a", "d", "d", "e"], HARMLESS)
    with pytest.raises(UserError, match="'a' leaves no harmless prompt of another kind"):
        baselines.other(["a"], ["a", "a"])
    with pytest.raises(UserError, match=r"between 0 and 1, got 1\.5"):
        baselines.mixed(torch.eye(1), torch.eye(1), share=1.5)


def test_weights_that_are_no_means_are_refused():
    for weights in (torch.tensor([[0.5, 0.4]]), torch.tensor([[1.5, -0.5]])):
        with pytest.raises(ValueError, match="baseline 'x' must not be negative and must add up to 1"):
            Baseline("x", ROWS[:2], weights)
