"""Reading KL off at equal refusal."""

import numpy as np
import pytest

from resect.studies import curves

STRENGTHS = np.array([0.5, 1.0, 1.5])
KL = np.array([0.1, 0.4, 0.9])


def test_reading_is_linear_between_strengths() -> None:
    strength, kl = curves.read_off(STRENGTHS, np.array([0.8, 0.2, 0.0]), KL, 0.5)
    assert strength == pytest.approx(0.75)
    assert kl == pytest.approx(0.25)


def test_exact_rates_are_taken_as_they_are() -> None:
    assert curves.read_off(STRENGTHS, np.array([0.8, 0.2, 0.0]), KL, 0.2) == pytest.approx((1.0, 0.4))


def test_a_rate_never_reached_has_no_reading() -> None:
    assert curves.read_off(STRENGTHS, np.array([0.8, 0.5, 0.6]), KL, 0.1) == (None, None)


def test_the_first_crossing_counts_when_refusals_come_back() -> None:
    strength, _ = curves.read_off(STRENGTHS, np.array([0.0, 0.5, 0.0]), KL, 0.1)
    assert strength == 0.5


def points(refusing: list[int], kl: list[float], prompts: int = 40) -> list[dict]:
    return [
        {"strength": s, "refused": [i < n for i in range(prompts)], "kl": [k] * prompts}
        for s, n, k in zip(STRENGTHS, refusing, kl, strict=True)
    ]


def test_matched_ratio_on_planted_curves() -> None:
    traces = {"standard": points([30, 10, 0], [0.2, 0.8, 1.8]), "sra": points([30, 10, 0], [0.1, 0.4, 0.9])}
    found = curves.matched(traces, refusal=0.0, pairs=[("standard", "sra")], seed=0)
    assert found["arms"]["sra"] == {"kl": 0.9, "strength": 1.5, "note": None}
    ratio = found["ratios"][0]["kl_ratio"]
    assert ratio["low"] == pytest.approx(2.0)
    assert ratio["value"] == pytest.approx(2.0)
    assert ratio["high"] == pytest.approx(2.0)


def test_an_arm_that_never_gets_there_says_so() -> None:
    traces = {"standard": points([30, 20, 10], [0.2, 0.8, 1.8]), "sra": points([30, 10, 0], [0.1, 0.4, 0.9])}
    found = curves.matched(traces, refusal=0.02, pairs=[("standard", "sra")], seed=0)
    assert found["arms"]["standard"]["kl"] is None
    assert "never below 25.0% refusals, at strength 1.5" in found["arms"]["standard"]["note"]
    assert found["ratios"][0]["kl_ratio"] is None
