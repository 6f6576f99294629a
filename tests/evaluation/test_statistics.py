import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resect.errors import UserError
from resect.evaluation.statistics import (
    Measurement,
    cohen_kappa,
    holm,
    mcnemar,
    mean_of,
    paired_bootstrap,
    perplexity,
    rate,
    spearman,
)

finite = st.floats(-1e6, 1e6, allow_nan=False)
few = settings(max_examples=40, deadline=None)


@few
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_wilson_is_that_of_scipy(outcomes):
    got, n = rate(outcomes), len(outcomes)
    reference = stats.binomtest(sum(outcomes), n).proportion_ci(0.95, method="wilson")
    assert got.value == sum(outcomes) / n
    assert got.low == pytest.approx(reference.low, abs=1e-12)
    assert got.high == pytest.approx(reference.high, abs=1e-12)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert (got.low == 0) == (not any(outcomes))
    assert (got.high == 1) == all(outcomes)


@few
@given(st.lists(finite, min_size=1, max_size=30), st.integers(0, 5))
def test_mean_is_ordered_seeded_and_inside_the_data(values, seed):
    got = mean_of(values, unit="nats", seed=seed)
    assert got == mean_of(values, unit="nats", seed=seed)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= got.low <= got.high <= max(values) + slack
    assert got.value == pytest.approx(math.fsum(values) / len(values), abs=slack)
    assert got.unit == "nats"


def test_mean_interval_agrees_with_scipy_and_the_normal_one():
    data = np.random.default_rng(1).gamma(2.0, 1.0, 200)
    got = mean_of(data, unit="nats", seed=3)
    reference = stats.bootstrap((data,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(5)).confidence_interval
    half = 1.96 * data.std(ddof=1) / math.sqrt(200)
    assert got.low == pytest.approx(reference.low, abs=0.15 * half)
    assert got.high == pytest.approx(reference.high, abs=0.15 * half)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    samples = [generator.normal(1.0, 1.0, 40) for _ in range(200)]
    covered = [m.low <= 1.0 <= m.high for m in (mean_of(s, unit="") for s in samples)]
    assert 0.88 <= np.mean(covered) <= 0.99


@few
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20)), min_size=1, max_size=20))
def test_perplexity_is_the_ratio_of_sums(pairs):
    sums, counts = zip(*pairs, strict=True)
    got = perplexity(sums, counts)
    assert got.value == pytest.approx(math.exp(math.fsum(sums) / sum(counts)))
    extremes = [math.exp(s / c) for s, c in pairs]
    assert min(extremes) * (1 - 1e-9) <= got.low <= got.high <= max(extremes) * (1 + 1e-9)


def test_perplexity_weighs_tokens_not_texts_and_saturates():
    assert perplexity([10.0, 0.0], [1, 99]).value == pytest.approx(math.exp(0.1))
    assert math.isfinite(perplexity([1e6], [1]).value)


@few
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_matches_the_binomial_tail_and_is_symmetric(pairs):
    a, b = zip(*pairs, strict=True)
    only_a = sum(x and not y for x, y in pairs)
    discordant = sum(x != y for x, y in pairs)
    tail = sum(math.comb(discordant, i) for i in range(min(only_a, discordant - only_a) + 1)) / 2**discordant
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(only_a, discordant).pvalue if discordant else 1.0)
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_paired_bootstrap_finds_a_planted_difference_and_no_other():
    generator = np.random.default_rng(2)
    base = generator.normal(0, 5, 100)
    shifted = base + 0.5 + generator.normal(0, 0.5, 100)
    found = paired_bootstrap(shifted, base, unit="nats")
    assert found.p == pytest.approx(1 / 2001)
    assert found.low < 0.5 < found.high
    assert found.low > 0
    back = paired_bootstrap(base, shifted, unit="nats")
    assert back.value == -found.value
    assert paired_bootstrap(base, base, unit="nats").p == 1.0


def test_p_values_under_no_difference_are_about_uniform():
    generator = np.random.default_rng(4)
    ps = [paired_bootstrap(*generator.normal(0, 1, (2, 30)), unit="").p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.10
    assert 0.4 <= np.mean(ps) <= 0.6


@few
@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_holm_is_monotone_bounded_and_ignores_order(ps, random):
    got = holm(ps)
    assert all(p <= q <= min(1.0, len(ps) * p) + 1e-12 for p, q in zip(ps, got, strict=True))
    order = list(range(len(ps)))
    random.shuffle(order)
    assert holm([ps[i] for i in order]) == pytest.approx([got[i] for i in order])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))


@few
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=20))
def test_spearman_matches_scipy_with_ties(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(UserError, match="variation on both sides"):
            spearman(x, y)
        return
    got = spearman(x, y)
    assert got.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 - 1e-12 <= got.low <= got.high <= 1 + 1e-12


def test_spearman_sees_order_and_its_absence():
    x = np.arange(30.0)
    assert spearman(x, np.exp(x)).low == pytest.approx(1.0)
    noise = spearman(x, np.random.default_rng(0).normal(size=30))
    assert noise.low < 0 < noise.high


def test_json_is_exactly_the_contract():
    assert Measurement(0.5, 0.1, 0.9, 4, "fraction").to_json() == {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4, "unit": "fraction"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rate([]), "at least one scored prompt"),
        (lambda: mean_of([], unit="nats"), "at least one prompt"),
        (lambda: mean_of([1.0, float("nan")], unit="nats"), "entry 1 is nan"),
        (lambda: mean_of([float("inf")], unit="nats"), "entry 0 is inf"),
        (lambda: perplexity([1.0, 2.0], [3, 0]), "text 1 has none"),
        (lambda: perplexity([1.0], [3, 4]), "1 values against 2"),
        (lambda: mcnemar([], []), "got none"),
        (lambda: mcnemar([True], [True, False]), "1 values against 2"),
        (lambda: paired_bootstrap([], [], unit=""), "got none"),
        (lambda: holm([0.1, 1.5]), r"\[1.5\]"),
        (lambda: spearman([1, 2], [2, 1]), "at least 3 pairs"),
        (lambda: Measurement(float("nan"), 0.0, 1.0, 3, "x"), "finite numbers"),
        (lambda: Measurement(0.5, 0.0, 1.0, 0, "x"), "n of at least 1"),
    ],
)
def test_nothing_becomes_nan(call, message):
    with pytest.raises(UserError, match=message):
        call()


def kappa_by_sums(a, b):
    """Scott's layout of Cohen's formula, computed pair by pair in plain Python."""
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum(x == y for x in a for y in b) / n**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_kappa_against_an_independent_formula(pairs):
    a, b = zip(*pairs, strict=True)
    got = cohen_kappa(a, b)
    assert got.value == pytest.approx(kappa_by_sums(a, b), abs=1e-9)
    assert got.n == len(pairs)
    assert cohen_kappa(b, a).value == pytest.approx(got.value)


def test_kappa_interval_covers_the_true_value_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(3), 0
    for seed in range(60):
        truth = generator.random(120) < 0.4
        noisy = np.where(generator.random(120) < 0.15, ~truth, truth)
        # flips of 15 % at prevalence 0.4: p_o 0.85, second rater says yes with 0.43
        chance = 0.4 * 0.43 + 0.6 * 0.57
        got = cohen_kappa(truth.tolist(), noisy.tolist(), seed=seed)
        hits += got.low <= (0.85 - chance) / (1 - chance) <= got.high
    assert 51 <= hits <= 60


def test_kappa_names_bad_input():
    with pytest.raises(UserError, match="got 1 and 2"):
        cohen_kappa(["a"], ["a", "b"])
