from dataclasses import replace

import pytest

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet
from resect.studies.contrast_inputs import from_organism, from_sides, split_sides


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


def test_the_same_prompt_on_two_sides_is_refused(contrast_config):
    harmful = side("bad", "ab", 60)
    with pytest.raises(UserError, match="harmful"):
        split_sides(harmful, harmful, side("any", "xy", 60), contrast_config())


@pytest.mark.parametrize(
    ("side_name", "few", "message"),
    [
        ("harmful", side("bad", "ab", 12), r"Only \d harmful prompts fall to validation; at least 8 are needed, give a larger file"),
        ("matched", side("good", "ab", 4, pairs=False), "Only 4 matched prompts fall to extract; at least 8 are needed"),
        ("unmatched", side("any", "x", 16, pairs=False), "Only 3 unmatched prompts fall to validation; at least 4 are needed"),
        ("unmatched", side("any", "x", 1, pairs=False), r"Only \d unmatched prompts fall to extract; at least 8 are needed"),
    ],
)
def test_a_side_that_is_too_small_is_named_with_its_part(contrast_config, side_name, few, message):
    sides = {"harmful": side("bad", "ab", 60), "matched": side("good", "ab", 60), "unmatched": side("any", "x", 60, pairs=False)}
    with pytest.raises(UserError, match=message):
        split_sides(**sides | {side_name: few}, config=contrast_config(baselines=["unmatched", "matched"]))


def test_partners_share_their_category_and_rows_left_out_in_reading_are_counted(organism, contrast_config):
    sides = {"harmful": side("bad", "ab", 60), "matched": side("good", "ab", 60), "unmatched": side("any", "x", 60, pairs=False)}
    whole = from_sides(organism.aligned(), **sides, config=contrast_config())
    for name in ("harmful", "matched"):
        bare = replace(sides[name], prompts=tuple(replace(p, category=None) for p in sides[name]), dropped=3)
        found = from_sides(organism.aligned(), **(sides | {name: bare}), config=contrast_config())
        assert found.fingerprint == whole.fingerprint
        assert found.dropped == {"harmful": 0, "matched": 0, "unmatched": 0} | {name: 3}
        assert found.predictions is None
