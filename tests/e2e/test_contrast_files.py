"""Prompt files that cannot be compared are told in one sentence, before any model is loaded: the folder named here does not exist."""

import pytest

PAIRLESS = {"baselines": ["unmatched", "matched"]}


@pytest.fixture
def refused(refuses, sides, write_rows, tiny_study, tmp_path):
    """A function: a contrast study whose sides are changed to other rows (or files) ends with a message, and leaves no folder behind."""

    def check(message, settings=(), **changes):
        files = sides | {
            side: rows if isinstance(rows, str) else write_rows(tmp_path / f"{side}.jsonl", rows) for side, rows in changes.items()
        }
        given = [part for side, file in files.items() for part in (f"--{side}", file)]
        refuses(
            "contrast", tmp_path / "no-model", *given, "--out", tmp_path / "run", *tiny_study("contrast", **dict(settings)), message=message
        )
        assert not (tmp_path / "run").exists()

    return check


@pytest.fixture
def harmful(topical):
    return topical("Develop a scheme against")


@pytest.fixture
def matched(topical):
    return topical("Describe")


def test_the_rest_of_the_command_is_reached_with_good_files(refused, tmp_path):
    refused(f"There is no model folder {tmp_path / 'no-model'}; give an existing folder or a Hub id such as owner/name.")


def test_an_empty_file_and_a_file_of_one_prompt(refused, tmp_path):
    empty = "{path} holds no prompts; give a file with at least one."
    for side in ("harmful", "matched", "unmatched"):
        refused(empty.format(path=tmp_path / f"{side}.jsonl"), **{side: []})
    few = "Only 0 unmatched prompts fall to extract; at least 8 are needed, give a larger file "
    refused(f"{few}(it is divided into extract 50%, validation 20%, test 30%).", unmatched=[{"text": "What is item door 0"}])


def test_one_prompt_on_a_side_that_is_matched(refused, harmful, matched):
    refused(
        "179 of 180 prompts of 'harmful' have no partner in 'matched' (the first has pair id 'door1'); add their partners, or leave them "
        "out.",
        {"baselines": ["unmatched", "matched", "paired"]},
        matched=matched[:1],
    )
    tail = "needed, give a larger file (it is divided into extract 50%, validation 20%, test 30%)."
    refused(f"Only 0 harmful prompts fall to extract; at least 8 are {tail}", PAIRLESS, harmful=harmful[:1])


def test_identical_prompts_on_both_sides(refused, harmful):
    from resect.prompts import Prompt

    key = Prompt(harmful[0]["text"]).key
    message = (
        f"Prompt sets 'harmful' and 'matched' share 180 prompts (the first has key {key}), and they must be disjoint; remove the prompts "
        "from one of the sets."
    )
    refused(message, matched=harmful)


def test_unpaired_rows(refused, matched):
    paired = {"baselines": ["unmatched", "matched", "paired"]}
    refused(
        "5 of 180 prompts of 'harmful' have no partner in 'matched' (the first has pair id 'door0'); add their partners, or leave them "
        "out.",
        paired,
        matched=matched[5:],
    )
    bare = [row | {"pair_id": None} if i < 3 else row for i, row in enumerate(matched)]
    refused("3 of 180 prompts of 'matched' have no pair_id; give every row one, or match by category.", paired, matched=bare)
    twice = [row | {"pair_id": "door0"} if i == 1 else row for i, row in enumerate(matched)]
    refused("Pair id 'door0' stands on 2 prompts of 'matched'; give every pair its own id.", paired, matched=twice)


def test_a_matched_set_that_is_not_matched(refused, matched):
    crossed = [row | {"category": "money"} if row["category"] == "locks" else row for row in matched]
    refused(
        "The two prompts of pair 'door0' have different categories, 'locks' and 'money', so this set is not matched; correct one of them, "
        "or leave the pair out.",
        matched=crossed,
    )
    other = [row | {"category": "gardening", "pair_id": None} for row in matched]
    refused(
        "Category 'chemistry' has harmful prompts and no matched ones (3 such categories); add benign prompts on that topic, or leave the "
        "category out.",
        matched=other,
    )


def test_no_categories_or_a_single_one(refused, harmful, matched):
    bare = [{"text": row["text"]} for row in matched]
    refused(
        "24 of 24 matched prompts have no category, so no topic can be matched; give every row a category column, the same names on the "
        "harmful and the matched side, or let them be predicted (--set predict_categories=true).",
        matched=bare,
    )
    one = [[row | {"category": "locks"} for row in side] for side in (harmful, matched)]
    refused(
        "All harmful prompts have the one category 'locks'; matching by topic needs at least two topics.", harmful=one[0], matched=one[1]
    )


@pytest.mark.parametrize("count", [1, 2])
def test_a_category_of_one_or_two_prompts(refused, harmful, matched, count):
    """Of one prompt none may fall to extraction, of two one does: both are told, and neither is dropped."""
    lone = [
        [{"text": f"{start} kite {i}", "category": "kites", "pair_id": f"kite{i}"} for i in range(count)] for start in ("Steal", "Draw")
    ]
    message = {
        1: "Category 'kites' has 1 of 181 harmful prompts and none of them to extract from; give more of them, raise extract_prompts, or "
        "leave the category out.",
        2: "Category 'kites' has a single harmful prompt to extract from (half of a file's prompts are); a mean needs at least two, add "
        "some or leave the category out.",
    }
    refused(message[count], {"extract_prompts": 200}, harmful=harmful + lone[0], matched=matched + lone[1])


def test_fewer_prompts_than_a_map_has_neurons(refused, topical):
    few = {"harmful": topical("Develop a scheme against", 5), "matched": topical("Describe", 5)}
    settings = {"methods": ["mean_difference", "som"], "extract_prompts": 60}
    refused(
        "Category 'chemistry' has 7 harmful prompts to extract from and the map of method 'som' 9 neurons; give at least as many prompts, "
        "a smaller map (--set som_rows=2 --set som_columns=2), or methods without maps.",
        settings,
        **few,
    )


def test_options_that_are_missing_or_not_for_organisms(refuses, sides):
    given = [part for side in ("harmful", "unmatched") for part in (f"--{side}", sides[side])]
    message = "--matched is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column."
    refuses("contrast", "no-model", *given, message=message)
    message = "An organism brings its own prompts; leave out --harmful, --matched and --unmatched."
    refuses("contrast", "default", "--matched", sides["matched"], message=message)
    message = "Unknown baseline 'machted'; did you mean 'matched'? Allowed: dealt, matched, other_topics, paired, unmatched."
    refuses("contrast", "default", "--set", 'baselines=["machted"]', message=message)
