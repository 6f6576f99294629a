from dataclasses import replace

import pytest
import torch

from resect.directions import mean_of_differences
from resect.errors import UserError
from resect.prompts import Prompt
from resect.studies.contrast_materials import _dealt, _equal_sides, _with_partners, gather_sides
from resect.studies.contrast_topics import LEAST_OF_A_CATEGORY
from resect.studies.steps import Steps


def test_every_baseline_averages_the_rows_it_says(desk):
    materials = desk.materials
    of = [p.category for p in materials.benign_prompts]
    for i, prompt in enumerate(materials.prompts):
        used = {name: set(weights[i].nonzero().flatten().tolist()) for name, weights in materials.weights.items()}
        on, off = set(range(materials.matched_count)), set(range(materials.matched_count, len(of)))
        assert used["unmatched"] == off
        assert used["matched"] == {j for j in on if of[j] == prompt.category}
        assert used["other_topics"] == {j for j in on if of[j] != prompt.category}
        assert {materials.benign_prompts[j].pair_id for j in used["paired"]} == {prompt.pair_id}
        assert used["dealt"] < off
    for weights in materials.weights.values():
        torch.testing.assert_close(weights.sum(1).double(), torch.ones(len(materials.prompts), dtype=torch.float64))


def test_sides_are_of_one_size(desk):
    assert len(desk.materials.benign) == 2 * desk.materials.matched_count
    assert len(desk.materials.harmful) == len(desk.materials.prompts) == len(desk.materials.labels)


def answering(behaviour, answered):
    """Return the behaviour as if the base answered only those extraction prompts of the benign sides."""
    harmless = behaviour.harmless["extract"]
    return replace(behaviour, harmless={**behaviour.harmless, "extract": harmless.where([answered(p) for p in harmless.prompts])})


def test_all_baselines_rest_on_equally_many_rows_whatever_the_base_refuses(desk, contrast_inputs, tmp_path):
    """Matched prompts lost, unmatched ones lost, and both: sizes stay equal, and what is left out is counted."""
    matched, unmatched = ({p.key for p in side.extract} for side in (contrast_inputs.matched, contrast_inputs.unmatched))
    lost = set(sorted(matched)[::7]), set(sorted(unmatched)[::3])
    lonely = desk.materials.left_out["harmful"]
    for k, gone in enumerate((lost[0], lost[1], lost[0] | lost[1])):
        behaviour = answering(desk.behaviour, lambda p, gone=gone: p.key not in gone)
        found = gather_sides(desk.lab, contrast_inputs, behaviour, Steps(tmp_path / str(k)))
        rows = {name: int((weights > 0).any(0).sum()) for name, weights in found.weights.items()}
        assert set(rows.values()) == {found.matched_count} == {len(found.harmful)}
        assert found.left_out["harmful"] == len(desk.behaviour.harmful["extract"].prompts) - len(found.harmful) > lonely
        answered = {p.key for p in behaviour.harmless["extract"].prompts}
        assert found.left_out["matched"] == len(matched & answered) - found.matched_count
        harmful, on_topic, _ = _equal_sides(contrast_inputs, behaviour, pairs=False)
        assert len(harmful) >= len(found.harmful)
        assert len(on_topic) == min(len(matched & answered), len(unmatched & answered))


def test_dealt_rows_have_the_topics_as_often_as_the_matched_ones():
    topics = ["a"] * 5 + ["b"] * 3 + ["c"]
    dealt = _dealt(topics, 9, seed=1)
    assert {c: dealt.count(c) for c in "abc"} == {c: pytest.approx(topics.count(c), abs=1) for c in "abc"}
    assert _dealt(topics, 9, seed=1) == dealt
    assert set(_dealt(topics, 3, seed=0)) == {"a", "b", "c"}


def test_a_mixed_mean_moves_from_one_baseline_to_the_other(desk):
    materials = desk.materials
    ends = [mean_of_differences(materials.harmful, materials.baseline(name)).vectors for name in ("unmatched", "matched")]
    for share, expected in ((0.0, ends[0]), (1.0, ends[1]), (0.25, 0.75 * ends[0] + 0.25 * ends[1])):
        found = mean_of_differences(materials.harmful, materials.mixed(share)).vectors
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_topic_means_are_the_whole_difference_of_the_two_baselines(desk):
    """r_unmatched = r_matched + a mean of the topic means, weighted by the prompts of each topic."""
    materials = desk.materials
    unmatched, matched = (mean_of_differences(materials.harmful, materials.baseline(b)).vectors[:, 0] for b in ("unmatched", "matched"))
    shares = torch.bincount(materials.labels).float() / len(materials.labels)
    torch.testing.assert_close(unmatched - matched, torch.einsum("c,lcd->ld", shares, materials.topic_means), atol=1e-4, rtol=1e-4)


def test_prompts_whose_partner_is_gone_are_left_out_and_too_few_are_refused():
    harmful = tuple(Prompt(f"{c}{i}", c, f"{c}{i}") for c in "abc" for i in range(6))
    matched = tuple(p for p in harmful if p.pair_id not in {"a0", "c0", "c1", "c2", "c3", "c4"})
    kept = _with_partners(harmful, matched, paired=True)
    assert {p.pair_id for p in kept} == {p.pair_id for p in matched if p.category in "ab"}
    assert sum(p.category == "c" for p in matched) < LEAST_OF_A_CATEGORY
    assert len(_with_partners(harmful, matched, paired=False)) == 12
    with pytest.raises(UserError, match=r"Only 5 harmful extraction prompts of 1 categories have a matched prompt"):
        _with_partners(harmful, tuple(p for p in matched if p.category == "a"), paired=True)


def test_held_out_pairs_are_test_prompts_and_no_others(desk, contrast_inputs):
    partners = {p.pair_id for p in contrast_inputs.matched.test}
    assert len(desk.materials.held_out) == sum(p.pair_id in partners for p in contrast_inputs.harmful.test)
