"""Pairs of arms, tests between them, and the split of the gain."""

import math

import pytest

from resect.studies import comparisons


def test_every_pair_is_listed_once_with_its_reference_first() -> None:
    pairs = comparisons.pairs(("standard", "projected", "sra", "whitened"))
    assert pairs == (
        ("standard", "projected"),
        ("standard", "sra"),
        ("standard", "whitened"),
        ("projected", "sra"),
        ("projected", "whitened"),
        ("sra", "whitened"),
    )


def matched(standard: float | None, strength: float, flat: float, sra: float) -> dict:
    kl = {"standard": standard, "standard_sra_strength": strength, "sra_flat": flat, "sra": sra}
    return {"arms": {arm: {"kl": value} for arm, value in kl.items()}}


def test_cleaning_alone_takes_the_whole_credit() -> None:
    found = comparisons.decompose(matched(1.0, 1.0, 0.1, 0.1), rule="energy")
    assert found["cleaning_share"] == pytest.approx(1.0)
    assert found["strength_share"] == pytest.approx(0.0)


def test_shares_add_up_with_an_interaction() -> None:
    found = comparisons.decompose(matched(8.0, 4.0, 4.0, 1.0), rule="energy")
    assert found["cleaning_share"] + found["strength_share"] == pytest.approx(1.0)
    assert found["cleaning_share"] == pytest.approx((math.log(2) + math.log(4)) / 2 / math.log(8))


def test_a_missing_cell_is_named() -> None:
    found = comparisons.decompose(matched(None, 4.0, 4.0, 1.0), rule="energy")
    assert found["cleaning_share"] is None
    assert "no KL at matched refusal for standard" in found["sentence"]


def test_a_flat_rule_leaves_nothing_to_split() -> None:
    found = comparisons.decompose(matched(8.0, 4.0, 4.0, 1.0), rule="flat")
    assert found["cleaning_share"] is None
    assert "the gamma rule of this run is flat" in found["sentence"]


def result(refused: list[bool], kl: list[float]) -> dict:
    return {"harmful": {"verdicts": ["refuse" if r else "comply" for r in refused]}, "kl_first_token": kl, "kl_tokens": kl}


def test_a_clear_difference_is_significant_and_equal_arms_are_not() -> None:
    bad = result([True] * 30 + [False] * 10, [0.5 + 0.01 * i for i in range(40)])
    good = result([False] * 40, [0.1 + 0.01 * i for i in range(40)])
    rows = comparisons.compare({"base": bad, "standard": bad, "sra": good, "whitened": good}, seed=0)
    by = {(r["measure"], r["a"], r["b"]): r for r in rows}
    assert by["refusal_rate", "standard", "sra"]["p_holm"] < 1e-6
    assert by["refusal_rate", "sra", "whitened"]["p_holm"] == 1.0
    assert (by["refusal_rate", "standard", "sra"]["needed"], by["refusal_rate", "sra", "whitened"]["needed"]) == (None, 391)
    assert "needed" not in by["kl_first_token", "standard", "sra"]
    assert by["kl_first_token", "standard", "sra"]["difference"]["value"] == pytest.approx(0.4)
    assert ("refusal_rate", "base", "sra") not in by
