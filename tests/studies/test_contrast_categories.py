"""Categories taken away and predicted: right on the organism's topics, and their accuracy is what it says."""

from dataclasses import replace

import pytest

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet
from resect.studies import contrast_categories
from resect.studies.contrast_categories import predicted
from resect.studies.contrast_inputs import from_sides


def bare(prompts, which):
    """Return the prompts without pairs, those that `which` chooses without a category."""
    return replace(
        prompts, prompts=tuple(replace(p, pair_id=None, category=None if which(i) else p.category) for i, p in enumerate(prompts))
    )


@pytest.fixture(scope="module")
def sides(organism):
    """Two sides whose categories are the organism's capabilities, which differ in more than a word."""
    capabilities = organism.language.capabilities()

    def side(first):
        return PromptSet(
            str(first),
            tuple(Prompt(p.text, c, f"{c}{i}") for c, found in capabilities.items() for i, p in enumerate(found.prompts[first:][:16])),
        )

    return side(0), side(16)


def test_topics_that_were_taken_away_come_back(organism, sides, contrast_config):
    harmful, matched = bare(sides[0], lambda i: i % 4 == 0), bare(sides[1], lambda i: i % 3 > 0)
    told, filled, about = predicted(organism.aligned(), harmful, matched, contrast_config())
    for found, given, truth in ((told, harmful, sides[0]), (filled, matched, sides[1])):
        assert [p.category for p in given if p.category] == [f.category for f, g in zip(found, given, strict=True) if g.category]
        right = [f.category == t.category for f, t, g in zip(found, truth, given, strict=True) if g.category is None]
        assert sum(right) / len(right) > 0.8
    assert (about["harmful"], about["matched"], about["labelled"], about["known"]) == (24, 64, 72, 32)
    assert about["accuracy"] > 0.8 > 3 * about["chance"]
    assert about["right"] / about["known"] > 0.8
    again = predicted(organism.aligned(), harmful, matched, contrast_config())
    assert again == (told, filled, about)


def test_topics_are_told_by_all_tokens_and_hardly_by_the_last(organism, sides, contrast_config, monkeypatch):
    found = {}
    for position in ("mean", "last"):
        monkeypatch.setattr(contrast_categories, "POSITION", position)
        _, _, about = predicted(organism.aligned(), bare(sides[0], lambda i: i % 4 == 0), bare(sides[1], lambda _: True), contrast_config())
        found[position] = about["accuracy"]
    assert found["mean"] > found["last"] + 0.3


def test_categories_without_meaning_are_refused(organism, sides, contrast_config):
    mixed = replace(sides[0], prompts=tuple(replace(p, category="abc"[i * 7 % 3]) for i, p in enumerate(sides[0])))
    message = r"Categories cannot be told from activations here: at the best of 6 layers \d+% of 96 harmful prompts .* alone is 33%"
    with pytest.raises(UserError, match=message):
        predicted(organism.aligned(), bare(mixed, lambda _: False), bare(sides[1], lambda _: True), contrast_config())


def test_partners_are_asked_before_anything_is_predicted(organism, sides, contrast_config):
    whole = tuple(replace(s, prompts=tuple(replace(p, category=None) for p in s)) if k else s for k, s in enumerate(sides))
    assert predicted(organism.aligned(), *whole, contrast_config()) == (*sides, None)


def test_what_cannot_be_predicted_is_said(organism, sides, contrast_config):
    one = bare(sides[0], lambda i: i > 0)
    with pytest.raises(UserError, match="predicted from the harmful prompts that have one, and these have 1; at least two"):
        predicted(organism.aligned(), one, bare(sides[1], lambda _: True), contrast_config())
    lone = replace(sides[0], prompts=(*sides[0], Prompt("one more request", "lone")))
    with pytest.raises(UserError, match="Category 'lone' has a single harmful prompt"):
        predicted(organism.aligned(), lone, bare(sides[1], lambda _: True), contrast_config())


def test_inputs_keep_what_was_predicted_and_only_if_asked(organism, sides, contrast_config):
    harmful, matched = bare(sides[0], lambda _: False), bare(sides[1], lambda _: True)
    given = {"harmful": harmful, "matched": matched, "unmatched": PromptSet("any", tuple(Prompt(f"say {i}") for i in range(40)))}
    inputs = from_sides(organism.aligned(), **given, config=contrast_config(predict_categories=True))
    assert inputs.predictions["matched"] == 96
    with pytest.raises(UserError, match=r"42 of 42 matched prompts have no category.*predict_categories=true"):
        from_sides(organism.aligned(), **given, config=contrast_config())
