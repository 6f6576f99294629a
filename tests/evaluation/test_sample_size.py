"""Sample sizes by simulation: with so many prompts the difference is seen four times in five, with half as many it is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resect.errors import UserError
from resect.evaluation.sample_size import hint, pairs_for, pairs_needed, prompts_needed

TIMES = 4000


def paired_power(n: int, *, difference: float, discordant: float) -> float:
    """Share of simulated comparisons in which McNemar's mid-p test sees the difference."""
    draws = np.random.default_rng(0).multinomial(
        n, [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant], size=TIMES
    )
    more, less = draws[:, 0], draws[:, 1]
    both = more + less
    p = 2 * stats.binom.cdf(np.minimum(more, less), both, 0.5) - stats.binom.pmf(np.minimum(more, less), both, 0.5)
    return float((p < 0.05).mean())


def unpaired_power(n: int, *, rate: float, other: float) -> float:
    generator = np.random.default_rng(0)
    a, b = generator.binomial(n, rate, TIMES) / n, generator.binomial(n, other, TIMES) / n
    mean = (a + b) / 2
    z = np.abs(a - b) / np.sqrt(np.maximum(2 * mean * (1 - mean) / n, 1e-12))
    return float((z > stats.norm.isf(0.025)).mean())


@pytest.mark.parametrize(("difference", "discordant"), [(0.02, 0.05), (0.1, 0.2), (0.05, 0.3)])
def test_so_many_pairs_see_the_difference_four_times_in_five_and_half_as_many_do_not(difference, discordant) -> None:
    n = pairs_needed(difference, discordant=discordant)
    assert paired_power(n, difference=difference, discordant=discordant) == pytest.approx(0.8, abs=0.035)
    assert paired_power(n // 2, difference=difference, discordant=discordant) < 0.6


@pytest.mark.parametrize(("rate", "difference"), [(0.05, 0.02), (0.3, 0.1), (0.95, 0.05)])
def test_so_many_prompts_a_side_see_the_difference_four_times_in_five_and_half_as_many_do_not(rate, difference) -> None:
    n = prompts_needed(difference, rate=rate)
    other = rate + difference if rate < 0.5 else rate - difference
    assert unpaired_power(n, rate=rate, other=other) == pytest.approx(0.8, abs=0.035)
    assert unpaired_power(n // 2, rate=rate, other=other) < 0.6


def test_known_values() -> None:
    """Fleiss, Levin and Paik: 0.25 against 0.40 at power 0.8 takes 152 a side. Connor: ψ 0.2, δ 0.1 takes 155 pairs."""
    assert prompts_needed(0.15, rate=0.25) == 152
    assert pairs_needed(0.1, discordant=0.2) == 155


@given(st.floats(0.005, 0.3), st.floats(0, 1), st.floats(0.5, 0.95))
def test_smaller_differences_more_disagreement_and_more_power_take_more(difference, discordant, power) -> None:
    n = pairs_needed(difference, discordant=discordant, power=power)
    assert n >= pairs_needed(1.5 * difference, discordant=max(discordant, 1.5 * difference), power=power)
    assert n <= pairs_needed(difference, discordant=min(1.0, discordant + 0.1), power=power)
    assert n <= pairs_needed(difference, discordant=discordant, power=power + 0.04)


def test_hints_are_about_the_prompts_at_hand() -> None:
    a, b = [True] * 10 + [False] * 90, [True] * 5 + [False] * 95
    needed = pairs_for(a, b)
    assert needed == pairs_needed(0.02, discordant=0.05)
    assert hint(needed, 100).startswith(
        f"To see a difference of 2 points in 4 of 5 tries, you need n = {needed} prompts asked of both; there"
    )
    assert "5 points" in hint(9, 3, difference=0.05)
    assert "prompts for each" in hint(9, 3, paired=False)
    assert pairs_for(a, a) == pairs_needed(0.02, discordant=0.02)


def test_bad_numbers_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"difference 0\.0"):
        pairs_needed(0.0, discordant=0.1)
    with pytest.raises(UserError, match=r"between 0 and 1, got 1\.2"):
        pairs_needed(0.02, discordant=1.2)
    with pytest.raises(UserError, match="not percent"):
        prompts_needed(0.02, rate=5.0)
    with pytest.raises(UserError, match="got 2 and 1"):
        pairs_for([True, False], [True])
