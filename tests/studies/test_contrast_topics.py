"""What cannot be matched is said in one sentence, and a matched set is told from one that is not."""

import pytest

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet
from resect.studies.contrast_topics import check_all_extracted, check_maps, check_pairs, check_topics, inherited, pair_similarity


def side(name, categories, count, *, pairs=True):
    rows = [Prompt(f"{name} {c} item {i}", category=c, pair_id=f"{c}/{i}" if pairs else None) for c in categories for i in range(count)]
    return PromptSet(name, tuple(rows))


@pytest.mark.parametrize(
    ("harmful", "matched", "message"),
    [
        (side("bad", "ab", 3), PromptSet("m", (Prompt("no topic"),)), "1 of 1 matched prompts have no category"),
        (PromptSet("h", (Prompt("no topic"),)), side("good", "ab", 3), "1 of 1 harmful prompts have no category"),
        (side("bad", "abc", 3), side("good", "ab", 3), r"Category 'c' has harmful prompts and no matched ones \(1 such categories\)"),
        (side("bad", "a", 3), side("good", "a", 3), "one category 'a'; matching by topic needs at least two"),
        (side("bad", "ab", 3), side("good", "ab", 1), "Category 'a' has a single matched prompt to extract from"),
        (side("bad", "ab", 1), side("good", "ab", 3), "Category 'a' has a single harmful prompt to extract from"),
    ],
)
def test_what_cannot_be_matched_is_said(contrast_config, harmful, matched, message):
    with pytest.raises(UserError, match=message):
        check_topics(harmful, matched, contrast_config())
    check_topics(side("bad", "ab", 2), side("good", "abc", 2), contrast_config())


def test_a_map_needs_a_prompt_for_every_neuron(contrast_config):
    maps = contrast_config(methods=["svd", "som_svd"], som_rows=2, som_columns=3)
    with pytest.raises(UserError, match="Category 'b' has 5 harmful prompts to extract from and the map of method 'som_svd' 6 neurons"):
        check_maps({"a": 6, "b": 5}, maps)
    check_maps({"a": 6, "b": 6}, maps)
    check_maps({"a": 6, "b": 5}, contrast_config(methods=["svd"]))


def test_no_category_of_a_file_is_in_other_parts_only():
    harmful = side("bad", "abc", 3)
    with pytest.raises(UserError, match="Category 'c' has 3 of 9 harmful prompts and none of them to extract from"):
        check_all_extracted(harmful, harmful.first(6))
    check_all_extracted(harmful, harmful.first(7))


def test_pairs_are_checked_where_they_are_compared(contrast_config):
    harmful, matched = side("bad", "ab", 3), side("good", "ab", 2)
    with pytest.raises(UserError, match=r"2 of 6 prompts of 'bad' have no partner in 'good' \(the first has pair id 'a/2'\)"):
        check_pairs(harmful, matched, contrast_config())
    check_pairs(harmful, matched, contrast_config(baselines=["unmatched", "matched"]))
    check_pairs(harmful, side("good", "ab", 2, pairs=False), contrast_config())  # no pairs at all: nothing is paired, and said so
    crossed = PromptSet("good", (Prompt("x", "b", "a/0"),))
    with pytest.raises(UserError, match="The two prompts of pair 'a/0' have different categories, 'a' and 'b', so this set is not matched"):
        check_pairs(harmful, crossed, contrast_config(baselines=["matched"]))


def test_a_category_comes_from_the_partner_only_where_there_is_none():
    prompts = (Prompt("own", "own", "a/0"), Prompt("bare", None, "a/0"), Prompt("alone", None, "z"), Prompt("none"))
    assert [p.category for p in inherited(side("bad", "a", 1), PromptSet("good", prompts))] == ["own", "a", None, None]


def test_similarity_tells_a_matched_set_from_one_that_is_not():
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    harmful = [Prompt(f"break the {w} {w}s now", category=w, pair_id=w) for w in words]
    good = [Prompt(f"paint the {w} {w}s today", category=w, pair_id=w) for w in words]
    close, far = pair_similarity(harmful, good, seed=0), pair_similarity(harmful, [*good[1:], good[0]], seed=0)
    assert close == far  # pairs go by their ids, not by their order
    assert close["within"] > 2 * close["shuffled"]
    renamed = [Prompt(p.text, p.category, harmful[(i + 1) % 8].pair_id) for i, p in enumerate(good)]
    assert pair_similarity(harmful, renamed, seed=0)["within"] < close["within"] / 2
    assert pair_similarity(harmful, [Prompt("x", "none", "none")], seed=0) is None
    by_topic = pair_similarity(harmful, [Prompt(p.text, p.category) for p in good], seed=0)
    assert by_topic == close  # without shared pair ids by category, of which each has one prompt here
