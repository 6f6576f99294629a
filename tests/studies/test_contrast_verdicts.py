import pytest

from resect.studies.contrast_arms import Arm
from resect.studies.contrast_scores import compare
from resect.studies.contrast_verdicts import QUESTIONS, described, pairs, protocol_verdict, verdicts

UNMATCHED, MATCHED, RAW = (
    Arm("unmatched", "mean_difference"),
    Arm("matched", "mean_difference"),
    Arm("matched", "mean_difference", "raw_norm"),
)
RANDOM = Arm("unmatched", "random")


def result(refused, kl, n=60):
    return {"refused": [i < refused for i in range(n)], "kl": [kl + 0.001 * (i % 3) for i in range(n)]}


def answered(results, same=None):
    arms = [UNMATCHED, MATCHED, RAW, RANDOM]
    asked = pairs(arms)
    named = {arm.name: {"any": r, "single": r} for arm, r in zip(arms, results, strict=True)}
    by_place = {place: {name: found[place] for name, found in named.items()} for place in ("any", "single")}
    tests = [row for place, found in by_place.items() for row in compare(found, [(a, b) for _, a, b in asked], place, seed=0)]
    return {(v["question"], v["place"]): v for v in verdicts(tests, asked, named, same or {})}


def test_every_arm_is_compared_with_what_it_is_a_control_of():
    assert pairs([UNMATCHED, MATCHED, RAW, RANDOM]) == [
        ("matched", "unmatched/mean_difference", "matched/mean_difference"),
        ("raw_norm", "matched/mean_difference", "matched/mean_difference/raw_norm"),
        ("random", "unmatched/mean_difference", "unmatched/random"),
    ]
    assert pairs([MATCHED, RANDOM]) == []
    assert all(question in QUESTIONS for question, _, _ in pairs([UNMATCHED, MATCHED, RAW, RANDOM]))


def test_a_difference_that_is_there_is_found_with_its_sign():
    found = answered([result(0, 0.1), result(30, 0.1), result(60, 0.0), result(60, 0.1)])
    matched, raw = found["matched", "any"], found["raw_norm", "single"]
    assert (matched["more"], matched["less"], matched["drift_more"], matched["drift_less"]) == (1, 0, 0, 0)
    assert matched["sentences"][0].startswith(
        "matched/mean_difference leaves 50.0% of refusals, unmatched/mean_difference 0.0% (n 60, p < 0.001): more"
    )
    assert (raw["more"], raw["drift_less"]) == (1, 1)
    assert "less." in raw["sentences"][0]


def test_what_is_alike_is_not_told_apart():
    found = answered([result(1, 0.1), result(2, 0.1), result(2, 0.1), result(60, 0.1)])
    assert (found["matched", "any"]["more"], found["matched", "any"]["less"]) == (0, 0)
    assert "not told apart" in found["matched", "any"]["sentences"][0]
    assert found["matched", "any"]["answer"].startswith("of 1 comparisons, 0 leave more refusals, 0 fewer, 1 are not told apart")
    assert found["random", "any"]["more"] == 1


def test_one_edit_under_two_names_is_no_comparison_but_is_named():
    found = answered([result(10, 0.1)] * 4, {MATCHED.name: UNMATCHED.name, RANDOM.name: UNMATCHED.name})
    assert found["matched", "any"]["answer"] == "1 is the same edit under another name"
    assert found["matched", "any"]["sentences"] == [f"{MATCHED.name} is the same edit as {UNMATCHED.name}."]
    assert (found["matched", "any"]["n"], found["matched", "any"]["same"]) == (0, 1)
    assert found["raw_norm", "any"]["answer"].endswith("1 are not told apart")
    assert found["random", "single"]["same"] == 1


def test_the_order_of_two_arms_decides_the_sign_and_nothing_else():
    a, b = result(10, 0.1), result(50, 0.3)
    one, two = (compare({"a": x, "b": y}, [("a", "b")], "any", seed=0) for x, y in ((a, b), (b, a)))
    for first, second in zip(one, two, strict=True):
        assert first["difference"]["value"] == pytest.approx(-second["difference"]["value"])
        assert first["p"] == pytest.approx(second["p"], abs=2e-3)
        assert first["p_holm"] >= first["p"]


def test_the_papers_words_for_an_arm():
    cells = [
        {"kind": "single", "layers": [0], "r": 10},
        {"kind": "single", "layers": [3], "r": 9},
        {"kind": "all", "layers": [0, 3], "r": 0},
    ]
    found = protocol_verdict("a", cells, base=10, panel=10)
    assert (found["functional"], found["successful"], found["successful_anywhere"], found["least"]) == (True, False, True, 9)
    assert found["layers_at_zero"] == []
    nothing = protocol_verdict("a", cells[:1], base=10, panel=10)
    assert not nothing["functional"]
    assert not nothing["functional_anywhere"]


def test_an_arm_says_what_it_is():
    assert described(RAW)["label"].startswith("matched; difference of means; vectors not normalised")
    assert described(RAW)["control"]
    assert not described(MATCHED)["control"]
