import pytest

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet
from resect.studies.contrast_inputs import check_topics, from_organism, from_sides, pair_similarity


def side(name, categories, count, *, pairs=True):
    rows = [Prompt(f"{name} {c} item {i}", category=c, pair_id=f"{c}/{i}" if pairs else None) for c in categories for i in range(count)]
    return PromptSet(name, tuple(rows))


def test_pairs_and_categories_stay_in_step(organism, contrast_config):
    inputs = from_organism(organism, config=contrast_config())
    for part, count in (("extract", 42), ("validation", 12), ("test", 20)):
        harmful, matched = getattr(inputs.harmful, part), getattr(inputs.matched, part)
        assert len(harmful) == count
        assert len(matched) == (count if part == "extract" else -(-count // 2))
        assert [p.pair_id for p in matched] == [p.pair_id for p in harmful.first(len(matched))]
        counts = [sum(p.category == c for p in harmful) for c in {p.category for p in harmful}]
        assert len(counts) == 6
        assert max(counts) - min(counts) <= 1


def test_the_two_sides_hold_the_three_and_the_fingerprint_sees_each(organism, contrast_config):
    inputs = from_organism(organism, config=contrast_config())
    for part, prompts in inputs.study.harmless.items():
        assert prompts.prompts == getattr(inputs.matched, part).prompts + getattr(inputs.unmatched, part).prompts
    swapped = type(inputs)(inputs.model, inputs.harmful, inputs.matched, inputs.matched, inputs.twin)
    assert swapped.fingerprint != inputs.fingerprint


def test_files_are_split_with_pairs_together(organism, contrast_config):
    model = organism.aligned()
    sides = {"harmful": side("bad", "ab", 60), "matched": side("good", "ab", 60), "unmatched": side("any", "xyz", 60, pairs=False)}
    inputs = from_sides(model, **sides, config=contrast_config())
    parts = {part: {p.pair_id for p in getattr(inputs.harmful, part)} for part in ("extract", "validation", "test")}
    for part, ids in parts.items():
        assert {p.pair_id for p in getattr(inputs.matched, part)} <= ids | set().union(*parts.values())
        assert not any({p.pair_id for p in getattr(inputs.matched, other)} & ids for other in parts if other != part)


@pytest.mark.parametrize(
    ("harmful", "matched", "message"),
    [
        (side("bad", "ab", 3), PromptSet("m", (Prompt("no topic"),)), "Some matched prompts have no category"),
        (PromptSet("h", (Prompt("no topic"),)), side("good", "ab", 3), "Some harmful prompts have no category"),
        (side("bad", "abc", 3), side("good", "ab", 3), r"Category 'c' has harmful prompts and no matched ones \(1 such categories\)"),
        (side("bad", "a", 3), side("good", "a", 3), "one category 'a'; matching by topic needs at least two"),
        (side("bad", "ab", 3), side("good", "ab", 1), "Category 'a' has a single matched prompt"),
        (side("bad", "ab", 1), side("good", "ab", 3), "Category 'a' has a single harmful prompt"),
    ],
)
def test_what_cannot_be_matched_is_said(harmful, matched, message):
    with pytest.raises(UserError, match=message):
        check_topics(harmful, matched)


def test_the_same_prompt_on_two_sides_is_refused(organism, contrast_config):
    harmful = side("bad", "ab", 60)
    with pytest.raises(UserError, match="harmful"):
        from_sides(organism.aligned(), harmful=harmful, matched=harmful, unmatched=side("any", "xy", 60), config=contrast_config())


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
