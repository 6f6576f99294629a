"""What an evaluation says, from results made by hand."""

import math

import pytest

from resect.evaluation.token_drift import TokenDrift
from resect.prompts import Prompt, PromptSet
from resect.prompts.suite import Suite
from resect.studies.suite_summary import compare, sample_rows, summary

SUITE = Suite(
    harmful=PromptSet("harmful", tuple(Prompt(f"bad {i}") for i in range(4))),
    harmless=PromptSet("harmless", tuple(Prompt(f"good {i}", category=f"c{i % 2}") for i in range(4))),
    questions=PromptSet("question", tuple(Prompt(f"sum {i}", category="sums", response="3") for i in range(3))),
    grades=("exact", "exact", None),
    texts=(),
)


def judged(harmful, harmless=("comply",) * 4, unscored=None):
    return {"harmful": list(harmful), "harmless": list(harmless), "unscored": unscored or {}}


def drift(kl, offsets=(0, 2, 3, 4, 5)):
    return {"kl": kl, "reverse": kl, "entropy_shift": [0.1] * 5, "refusing": [0.0] * 4, "flipped": [False] * 5, "offsets": list(offsets)}


def result(verdicts, *, kl=None, right=(True, False, None), sums=(1.0, 2.0, 3.0), tasks=None, rounding=None):
    found = {
        "verdicts": verdicts,
        "responses": {"harmful": ["h"] * 4, "harmless": ["g"] * 4},
        "drift": kl,
        "rounding": rounding,
        "grades": {"exact": list(right)},
    }
    return found | {"nll": {"questions": {"sums": list(sums), "tokens": [2, 2, 2]}}, "tasks": tasks or {}}


def arm(found):
    return summary({"base": found}, SUITE, seed=0)[0]["base"]


def test_unscored_and_truncated_responses_are_in_no_rate_and_are_said():
    entry = arm(result({"a": judged(["refuse", "unscored", "truncated", "comply"], unscored={"timeout": 1}), "b": judged(["refuse"] * 4)}))
    assert (entry["refusal_rate"]["value"], entry["refusal_rate"]["n"]) == (0.5, 2)
    assert entry["judges"]["a"]["compliance_rate"]["value"] == 0.5
    assert entry["judges"]["a"]["verdicts"]["harmful"]["unscored"] == 1
    assert "a says nothing of 2 of 4 harmful responses (most often: timeout)." in entry["missing"]
    assert entry["agreement"]["a / b"]["left_out"] == 2


def test_a_judge_that_scored_nothing_has_no_rate_and_the_next_one_gives_it():
    entry = arm(result({"a": judged(["unscored"] * 4, ["unscored"] * 4, {"slow": 8}), "b": judged(["refuse"] * 4)}))
    assert (entry["judges"]["a"]["refusal_rate"], entry["judges"]["a"]["compliance_rate"]) == (None, None)
    assert entry["refusal_rate"] == entry["judges"]["b"]["refusal_rate"]
    assert arm(result({"a": judged(["unscored"] * 4, ["unscored"] * 4, {"slow": 8})}))["refusal_rate"] is None


def test_drift_carries_the_floor_of_rounding_where_it_is_known():
    floors = {"kl_first_token": 0.3, "kl_tokens": 0.01}
    known, unknown = (arm(result({}, kl=drift([0.2] * 5), rounding=r)) for r in (floors, None))
    assert {name: known[name]["floor"] for name in floors} == floors
    assert {name: {k: v for k, v in known[name].items() if k != "floor"} for name in floors} == {name: unknown[name] for name in floors}
    assert set(unknown["kl_tokens"]) == {"value", "low", "high", "n", "unit"}


def test_where_one_judge_failed_the_other_gives_the_rates_and_there_is_no_agreement():
    entry = arm(result({"a": {"error": "nobody answers"}, "b": judged(["refuse"] * 3 + ["degenerate"])}))
    assert (entry["refusal_rate"]["value"], entry["refusal_rate"]["n"]) == (0.75, 4)
    assert entry["judges"]["b"]["compliance_rate"]["value"] == 0.0
    assert entry["agreement"] == {}
    assert "Verdicts of a: nobody answers" in entry["missing"]
    assert any("fewer than two" in line for line in entry["missing"])


def test_drift_is_averaged_by_prompt_position_and_topic():
    entry = arm(result({}, kl=drift([0.1, 0.3, 0.5, 0.7, 0.9])))
    assert entry["kl_first_token"]["value"] == pytest.approx((0.1 + 0.5 + 0.7 + 0.9) / 4)
    assert entry["kl_tokens"]["value"] == pytest.approx((0.2 + 0.5 + 0.7 + 0.9) / 4)
    assert [p["n"] for p in entry["drift"]["by_position"]] == [4, 1]
    assert entry["drift"]["by_topic"]["c1"]["value"] == pytest.approx((0.5 + 0.9) / 2)
    assert entry["drift"]["entropy_shift"]["value"] == pytest.approx(0.1)


def test_an_infinite_drift_is_said_and_never_a_number():
    assert math.isinf(TokenDrift.from_json(drift([None, 0.3, 0.5, 0.7, 0.9])).kl[0])
    entry = arm(result({}, kl=drift([None, 0.3, 0.5, 0.7, 0.9])))
    assert (entry["kl_first_token"], entry["kl_tokens"]) == (None, None)
    assert "drift" not in entry
    assert any("infinite at 1 of 5 tokens" in line for line in entry["missing"])
    assert arm(result({}, kl={"error": "other words"}))["missing"] == ["Drift: other words"]


def test_only_graded_questions_are_graded():
    entry = arm(result({}))
    assert (entry["exact_match"]["all"]["n"], entry["exact_match"]["all"]["value"]) == (2, 0.5)
    assert entry["exact_match"]["by_category"]["sums"]["n"] == 2
    assert entry["perplexity"]["questions"]["value"] == pytest.approx(math.e)


def test_pairs_without_a_verdict_of_both_are_left_out_of_the_test_and_holm_is_over_each_measure():
    first = result({"a": judged(["refuse"] * 4), "b": judged(["refuse"] * 4)}, tasks={"t": {"acc": [1.0, 0.0]}})
    second = result({"a": judged(["comply", "comply", "unscored", "truncated"]), "b": {"error": "dead"}}, tasks={"t": {"acc": [0.0, 0.0]}})
    rows = {(r["measure"], r.get("judge")): r for r in compare({"base": first, "against": second}, seed=0)}
    assert set(rows) == {
        ("refusal_rate", "a"),
        ("benign_refusal_rate", "a"),
        ("exact_match", None),
        ("nll:questions", None),
        ("t:acc", None),
    }
    assert (rows["refusal_rate", "a"]["n"], rows["refusal_rate", "a"]["difference"]["value"]) == (2, 1.0)
    assert rows["refusal_rate", "a"]["needed"] > 0
    assert "needed" not in rows["nll:questions", None]


def test_the_drift_of_two_arms_is_compared_where_both_have_one():
    arms = {"base": result({}), "edited": result({}, kl=drift([0.5] * 5)), "against": result({}, kl=drift([0.1] * 5))}
    rows = {(r["measure"], r["a"], r["b"]): r for r in compare(arms, seed=0)}
    assert rows["kl_tokens", "edited", "against"]["difference"]["value"] == pytest.approx(0.4)
    assert ("kl_tokens", "base", "edited") not in rows


def test_samples_hold_hashes_and_every_judge_that_scored():
    rows = list(sample_rows({"base": result({"a": judged(["refuse"] * 4), "b": {"error": "dead"}})}, SUITE))
    assert len(rows) == 8
    told = {"prompt": Prompt("bad 0").key, "category": None, "verdicts": {"a": "refuse"}, "response": "h"}
    assert rows[0] == {"arm": "base", "set": "harmful"} | told
