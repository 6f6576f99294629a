"""Error rates of sequential stopping: exact, by counting orders, and by simulation in both directions."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resect.errors import UserError
from resect.evaluation.sequential import DropRule, drop_rule

SWEEP = drop_rule(100, passes=0.1, hopeless=0.5)


def orders(prompts: int, refused: int, *, times: int, seed: int) -> np.ndarray:
    """Return refusals so far after n = 1 … N prompts, one random order a row."""
    outcomes = np.zeros((times, prompts), dtype=int)
    outcomes[:, :refused] = 1
    return np.random.default_rng(seed).permuted(outcomes, axis=1).cumsum(axis=1)


def first_drop(rule: DropRule, so_far: np.ndarray) -> np.ndarray:
    """Return after how many prompts each order is dropped, N + 1 for never."""
    seen = np.arange(1, rule.prompts + 1)
    looks = (seen % rule.every == 0) | (seen == rule.prompts)
    gone = (so_far >= rule.boundary[1:]) & looks
    return np.where(gone.any(axis=1), gone.argmax(axis=1) + 1, rule.prompts + 1)


def survivors(rule: DropRule) -> list[list[int]]:
    """Return, after n prompts, how many sequences with s refusals were never dropped at a look: whole numbers, by dynamic programming."""
    alive, found = [1], [[1]]
    for n in range(1, rule.prompts + 1):
        grown = [(alive[s] if s < n else 0) + (alive[s - 1] if s else 0) for s in range(n + 1)]
        look = n % rule.every == 0 or n == rule.prompts
        alive = [0 if look and rule.drops(s, n) else ways for s, ways in enumerate(grown)]
        found.append(alive)
    return found


def dropped_exactly(rule: DropRule, alive: list[list[int]], refused: int, by: int) -> Fraction:
    """Return the probability that a candidate which refuses `refused` of all prompts is dropped by then: no order is left out."""
    left = rule.prompts - by
    kept = sum(ways * comb(left, refused - s) for s, ways in enumerate(alive[by]) if 0 <= refused - s <= left)
    return 1 - Fraction(kept, comb(rule.prompts, refused))


def above(count: int, times: int, share: float) -> bool:
    """Whether a simulated share is above the claimed one, beyond what chance explains (once in ten thousand)."""
    return stats.binomtest(count, times, share, alternative="greater").pvalue < 1e-4


@pytest.mark.parametrize(("prompts", "passes", "alpha"), [(100, 0.1, 0.05), (100, 0.1, 0.2), (32, 0.25, 0.1), (400, 0.05, 0.05)])
def test_a_candidate_that_passes_is_dropped_at_most_alpha_of_the_time_though_every_prompt_is_a_look(prompts, passes, alpha) -> None:
    rule = drop_rule(prompts, passes=passes, hopeless=0.6, alpha=alpha)
    for refused in {rule.allowed, rule.allowed // 2, 0}:
        dropped = int((first_drop(rule, orders(prompts, refused, times=20_000, seed=refused)) <= prompts).sum())
        assert not above(dropped, 20_000, alpha)


@pytest.mark.parametrize("every", [1, 4, 8, 16])
@pytest.mark.parametrize(("prompts", "passes", "hopeless"), [(100, 0.1, 0.5), (100, 0.05, 0.4), (97, 0.05, 0.2), (64, 0.25, 0.75)])
def test_both_error_rates_hold_exactly(prompts: int, passes: float, hopeless: float, every: int) -> None:
    """A false drop in at most 1 of 100 orders for every candidate that passes, a late drop in at most 5 of 100 for every hopeless one."""
    rule = drop_rule(prompts, passes=passes, hopeless=hopeless, every=every)
    assert (rule.alpha, rule.beta) == (0.01, 0.05)
    alive = survivors(rule)
    false = [dropped_exactly(rule, alive, refused, prompts) for refused in range(rule.allowed + 1)]
    assert max(false) <= Fraction(1, 100)
    assert max(false) == false[-1] > 0, "the rule spends some of what it may"
    late = [1 - dropped_exactly(rule, alive, refused, rule.deadline) for refused in range(rule.hopeless, prompts + 1)]
    assert max(late) <= Fraction(5, 100)
    assert 1 - dropped_exactly(rule, alive, rule.hopeless, rule.deadline - 1) > Fraction(5, 100), "the deadline is the first such look"
    assert rule.deadline <= 48
    assert float(false[-1]) == pytest.approx(rule.dropped_by(rule.allowed)[-1], rel=1e-9)
    assert float(late[0]) == pytest.approx(1 - rule.dropped_by(rule.hopeless)[rule.deadline], rel=1e-9)


def test_a_rule_that_spends_too_much_is_seen_by_the_exact_count() -> None:
    """A boundary one refusal lower, as a plain test at 5 % would draw it, breaks the 1 %."""
    rule = drop_rule(100, passes=0.1, hopeless=0.5)
    rule.__dict__["boundary"] = np.array([stats.binom.isf(0.05, n, 0.1) + 1 for n in range(101)])
    assert dropped_exactly(rule, survivors(rule), rule.allowed, 100) > Fraction(1, 100)


def test_looking_again_and_again_at_a_plain_test_breaks_its_error_rate_which_this_simulation_sees() -> None:
    so_far, seen = orders(100, 10, times=4000, seed=1), np.arange(1, 101)
    naive = stats.binom.sf(so_far - 1, seen, 0.1) < 0.05
    assert above(int(naive.any(axis=1).sum()), 4000, 0.05)


@pytest.mark.parametrize("every", [1, 8, 16])
def test_a_hopeless_candidate_is_gone_by_the_deadline_which_is_within_32_prompts(every: int) -> None:
    rule = drop_rule(100, passes=0.1, hopeless=0.5, every=every)
    assert rule.deadline <= 32
    for refused in (rule.hopeless, 80, 100):
        late = int((first_drop(rule, orders(100, refused, times=20_000, seed=refused)) > rule.deadline).sum())
        assert not above(late, 20_000, rule.beta)
    assert rule.dropped_by(rule.hopeless)[rule.deadline - 1] < 1 - rule.beta, "the deadline is the earliest one, not any late one"


def test_exact_probabilities_are_those_of_all_orders() -> None:
    rule = DropRule(9, 1, 5, alpha=0.2, beta=0.3, every=2)
    for refused in range(10):
        places = list(combinations(range(9), refused))
        so_far = np.array([np.isin(np.arange(9), place).cumsum() for place in places])
        when = first_drop(rule, so_far)
        counted = [(when <= n).mean() for n in range(10)]
        np.testing.assert_allclose(rule.dropped_by(refused), counted, atol=1e-12)


@given(st.integers(2, 40), st.data())
def test_the_exact_error_is_below_alpha_for_every_passing_candidate_and_more_refusals_are_dropped_sooner(prompts: int, data) -> None:
    allowed = data.draw(st.integers(0, prompts - 1))
    rule = DropRule(prompts, allowed, prompts, alpha=data.draw(st.floats(0.001, 0.5)))
    chances = np.array([rule.dropped_by(refused) for refused in range(prompts + 1)])
    assert (chances[: allowed + 1, -1] <= rule.alpha + 1e-9).all()
    assert (np.diff(chances, axis=0) >= -1e-9).all()
    assert (np.diff(chances, axis=1) >= -1e-12).all()


def test_what_cannot_pass_any_more_is_dropped_for_certain_and_what_is_within_the_allowance_never() -> None:
    assert not any(SWEEP.drops(seen // 10, seen) for seen in range(1, 101))
    assert all(SWEEP.drops(11, seen) for seen in range(11, 101)), "10 of 100 are allowed"
    assert (SWEEP.dropped_by(11)[-1], SWEEP.dropped_by(0)[-1]) == (pytest.approx(1.0), 0.0)


def test_rates_become_counts_without_rounding_errors() -> None:
    rule = drop_rule(30, passes=0.1, hopeless=0.7)
    assert (rule.allowed, rule.hopeless) == (3, 21)


def test_bad_numbers_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="allowed < hopeless"):
        drop_rule(100, passes=0.5, hopeless=0.5)
    with pytest.raises(UserError, match="Error rates"):
        drop_rule(100, passes=0.1, hopeless=0.5, alpha=0.0)
    with pytest.raises(UserError, match="cannot refuse 5 of 4"):
        SWEEP.drops(5, 4)
    with pytest.raises(UserError, match="cannot refuse 101"):
        SWEEP.dropped_by(101)
