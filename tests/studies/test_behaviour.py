"""What the base does: learnt from its own responses, filtered in extraction only, extremes refused."""

from dataclasses import replace

import pytest
import torch

from resect.errors import UserError
from resect.evaluation.verdicts import judge_markers
from resect.prompts import PromptSet
from resect.studies.behaviour import observe
from resect.studies.inputs import Split
from resect.studies.lab import Lab
from resect.studies.steps import Steps


def test_the_organism_refuses_one_side_and_answers_the_other(bench):
    behaviour = bench.behaviour
    refused = {side: [v == "refuse" for v in getattr(behaviour, side)["test"].verdicts] for side in ("harmful", "harmless")}
    assert sum(refused["harmful"]) >= 20
    assert sum(refused["harmless"]) <= 1


def test_the_log_odds_judge_agrees_with_the_responses(bench):
    for side, wanted in (("harmful", 20), ("harmless", 0)):
        asked = getattr(bench.behaviour, side)["test"]
        said = bench.behaviour.refuses_at_once(asked.logprobs)
        assert sum(a == (v == "refuse") for a, v in zip(said, asked.verdicts, strict=True)) >= 22
        assert sum(said) >= wanted


def test_only_extraction_is_filtered(inputs, configured, tmp_path):
    # Harmless prompts among the harmful ones: the base answers them, so they must not build the direction.
    stray = inputs.harmless.extract.prompts[:5]
    mixed = replace(inputs.harmful, extract=replace(inputs.harmful.extract, prompts=(*inputs.harmful.extract.prompts[5:], *stray)))
    rest = replace(inputs.harmless, extract=replace(inputs.harmless.extract, prompts=inputs.harmless.extract.prompts[5:]))
    given = replace(inputs, harmful=mixed, harmless=rest)
    kept = observe(Lab(given.model, configured()), given, Steps(tmp_path))
    assert not set(p.text for p in stray) & set(kept.harmful["extract"].prompts.texts)
    assert kept.counts["harmful"]["extract"]["n"] - kept.counts["harmful"]["extract"]["kept"] >= 5
    assert len(kept.harmful["test"].prompts) == 24
    everything = observe(Lab(given.model, configured(filter_by_behaviour=False)), given, Steps(tmp_path))
    assert len(everything.harmful["extract"].prompts) == 32
    assert everything.counts["harmful"]["extract"] == {"n": 32, "kept": 32}


def test_a_base_that_refuses_nothing_is_refused(inputs, configured, tmp_path):
    helpful = replace(inputs, model=inputs.twin)
    with pytest.raises(
        UserError, match=r"The base model refuses none of the 72 harmful prompts, so there is no refusal to find; use prompts"
    ):
        observe(Lab(helpful.model, configured()), helpful, Steps(tmp_path))


def test_a_base_that_refuses_everything_is_refused(inputs, organism, configured, tmp_path):
    lab = Lab(inputs.model, configured())
    used = {p.text for _, part in inputs.harmful.items() for p in part}
    spare = tuple(p for p in organism.language.harmful("extract") if p.text not in used)
    parts = {name: PromptSet(name, spare[k::3]) for k, name in enumerate(("extract", "validation", "test"))}
    refused = {name: part.where(refuses(lab, part)) for name, part in inputs.harmful.items()}
    assert all(len(part) >= 8 for part in refused.values())
    wrong = replace(inputs, harmful=Split(**parts), harmless=Split(**refused))
    with pytest.raises(
        UserError, match=r"The base model refuses all of the \d+ harmless prompts, so refusal has nothing to stand out from"
    ):
        observe(lab, wrong, Steps(tmp_path))


def refuses(lab, prompts):
    return [v == "refuse" for v in judge_markers(lab.respond(prompts, max_new_tokens=24))]


def test_what_was_asked_is_read_back_with_the_same_numbers(bench, inputs, configured):
    again = observe(Lab(inputs.model, configured()), inputs, Steps(bench.steps.folder))
    for part in ("extract", "validation", "test"):
        assert again.harmful[part].verdicts == bench.behaviour.harmful[part].verdicts
        assert torch.equal(again.harmful[part].logprobs, bench.behaviour.harmful[part].logprobs)
    assert again.cut == bench.behaviour.cut
