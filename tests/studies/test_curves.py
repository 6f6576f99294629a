"""Reading KL off at equal refusal."""

import random
from dataclasses import replace

import numpy as np
import pytest

from resect.studies import curves
from resect.studies.bench import score_plan

STRENGTHS = np.array([0.0, 0.5, 1.0, 1.5])
KL = np.array([0.0, 0.01, 0.09, 0.25])
BASE = [True] * 40


def test_the_root_of_kl_is_linear_between_strengths() -> None:
    strength, kl = curves.read_off(STRENGTHS, np.array([1.0, 0.8, 0.2, 0.0]), KL, 0.5)
    assert strength == pytest.approx(0.75)
    assert kl == pytest.approx(0.2**2)


def test_a_quadratic_curve_is_read_exactly() -> None:
    strengths = np.array([0.0, 0.4, 1.6])
    rates = 1 - strengths / 2
    for refusal in (0.9, 0.5, 0.3):
        strength, kl = curves.read_off(strengths, rates, 3 * strengths**2, refusal)
        assert strength == pytest.approx(2 * (1 - refusal))
        assert kl == pytest.approx(3 * strength**2)


def test_the_base_model_is_the_start_of_the_first_stretch() -> None:
    strength, kl = curves.read_off(STRENGTHS, np.array([1.0, 0.0, 0.0, 0.0]), KL, 0.5)
    assert strength == pytest.approx(0.25)
    assert kl == pytest.approx(0.05**2)


def test_exact_rates_are_taken_as_they_are() -> None:
    assert curves.read_off(STRENGTHS, np.array([1.0, 0.8, 0.2, 0.0]), KL, 0.2) == pytest.approx((1.0, 0.09))


@pytest.mark.parametrize("rates", [[1.0, 0.8, 0.5, 0.6], [0.05, 0.0, 0.0, 0.0]])
def test_a_rate_never_reached_or_there_from_the_start_has_no_reading(rates) -> None:
    assert curves.read_off(STRENGTHS, np.array(rates), KL, 0.1) == (None, None)


def test_the_first_crossing_counts_when_refusals_come_back() -> None:
    strength, _ = curves.read_off(STRENGTHS, np.array([1.0, 0.0, 0.5, 0.0]), KL, 0.1)
    assert strength == pytest.approx(0.45)


def points(refusing: list[int], kl: list[list[float]]) -> list[dict]:
    return [
        {"strength": s, "refused": [i < n for i in range(len(BASE))], "kl": k} for s, n, k in zip(STRENGTHS[1:], refusing, kl, strict=True)
    ]


def spread(scale: float) -> list[list[float]]:
    """KL that varies a lot from prompt to prompt, in the same way for every arm."""
    rng = random.Random(0)
    shape = [rng.expovariate(1.0) for _ in range(40)]
    return [[scale * level * x for x in shape] for level in (0.1, 0.4, 0.9)]


def found(traces, *, refusal=0.05, base=BASE):
    return curves.matched(traces, base=base, refusal=refusal, pairs=[("standard", "sra")], seed=0)


def test_the_ratio_of_arms_that_differ_by_a_factor_is_that_factor_in_every_draw() -> None:
    """Pairing: prompts vary a lot, but in both arms alike, so the interval must be narrow; unpaired it would not be."""
    result = found({"standard": points([30, 10, 0], spread(2.0)), "sra": points([30, 10, 0], spread(1.0))})
    ratio = result["ratios"][0]["kl_ratio"]
    assert (ratio["low"], ratio["value"], ratio["high"]) == pytest.approx((2.0, 2.0, 2.0))


def test_arms_that_cross_at_different_strengths_have_an_interval() -> None:
    ratio = found({"standard": points([30, 12, 1], spread(2.0)), "sra": points([30, 3, 0], spread(1.0))})["ratios"][0]["kl_ratio"]
    assert 0 < ratio["low"] < ratio["value"]
    assert ratio["high"] is None or ratio["high"] > ratio["value"]


def test_an_arm_that_barely_gets_there_has_no_upper_bound() -> None:
    ratio = found({"standard": points([30, 20, 2], spread(2.0)), "sra": points([30, 3, 0], spread(1.0))})["ratios"][0]["kl_ratio"]
    assert ratio["high"] is None
    assert ratio["low"] > 1


def test_an_arm_that_never_gets_there_says_so() -> None:
    result = found({"standard": points([30, 20, 10], spread(2.0)), "sra": points([30, 10, 0], spread(1.0))}, refusal=0.02)
    assert result["arms"]["standard"]["kl"] is None
    assert "never below 25.0% refusals, at strength 1.5" in result["arms"]["standard"]["note"]
    assert result["ratios"][0]["kl_ratio"] is None


def test_a_base_that_hardly_refuses_cannot_be_matched() -> None:
    base = [i < 1 for i in range(40)]
    result = found({"standard": points([0, 0, 0], spread(2.0)), "sra": points([0, 0, 0], spread(1.0))}, base=base)
    assert result["arms"]["sra"]["note"] == "the base model itself refuses only 2.5%"
    assert result["ratios"][0]["kl_ratio"] is None


def test_the_point_that_was_scored_on_test_is_not_measured_again(bench, picked) -> None:
    recipe, choice = bench.chosen("sra", picked["sra"])
    choice = replace(choice, gamma=1.0)
    scored = score_plan(bench, "chosen", recipe.plan(bench.lab.writers, choice))
    known = curves.scored_point(scored, strength=choice.gamma)
    measured = curves.measure(bench.lab, recipe.plan(bench.lab.writers, choice), bench.behaviour, bench.reference, strength=choice.gamma)
    assert {k: known[k] for k in ("strength", "refused", "benign_refused", "recovered")} == {
        k: measured[k] for k in ("strength", "refused", "benign_refused", "recovered")
    }
    assert known["kl"] == pytest.approx(measured["kl"], rel=1e-3, abs=1e-7)
    asked: list[float] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(curves, "measure", lambda *_, strength: asked.append(strength) or {"strength": strength, "refused": [True]})
        points = curves.trace(bench.lab, recipe, choice, bench.behaviour, bench.reference, known={choice.gamma: known})
    assert choice.gamma not in asked
    assert known in points
