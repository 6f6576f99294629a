"""What the screen reads of a candidate: everything, or so little that nothing more could save it."""

from dataclasses import replace

import pytest
import torch

from resect.evaluation.sequential import drop_rule
from resect.studies import screening, selection
from resect.studies.arms import Choice
from resect.studies.screening import LOOKS, Candidate


@pytest.fixture
def choice(bench, picked):
    return bench.chosen("sra", picked["sra"])[1]


def recipes(bench, choice):
    return {choice.softness: bench.recipe("sra", choice.softness)}


def counted(bench, monkeypatch):
    """The numbers of prompts of all passes from here on."""
    passes = []
    own = type(bench.lab).first_logprobs_of

    def count(lab, prompts, plans):
        prompts = list(prompts)
        passes.extend([len(prompts)] * len(plans))
        return own(lab, prompts, plans)

    monkeypatch.setattr(type(bench.lab), "first_logprobs_of", count)
    return passes


@pytest.fixture
def looks(monkeypatch):
    """Looks that fit the few prompts of the tests' bench."""
    monkeypatch.setattr(screening, "LOOKS", (4, 8))


@pytest.mark.usefixtures("looks")
def test_a_hopeless_candidate_is_dropped_at_the_first_look_and_a_working_one_read_to_the_end(bench, choice, monkeypatch):
    passes = counted(bench, monkeypatch)
    prompts = len(bench.behaviour.harmful["validation"].prompts)
    rule = drop_rule(prompts, passes=0.02, hopeless=1.0, every=4)
    choices = [replace(choice, gamma=0.0), choice]
    hopeless, working = screening.screen(bench.lab, recipes(bench, choice), choices, bench.behaviour, rule=rule)
    assert (hopeless.dropped, len(hopeless.refused), hopeless.kls) == (True, 4, ())
    assert not hopeless.works(1.0)
    assert sum(passes) == 4 + prompts + len(bench.behaviour.harmless["validation"].prompts)
    (whole,) = screening.screen(bench.lab, recipes(bench, choice), [choice], bench.behaviour)
    assert working.refused == whole.refused
    assert working.kls == pytest.approx(whole.kls, rel=1e-4, abs=1e-7)


@pytest.mark.usefixtures("looks")
def test_what_is_read_does_not_depend_on_the_order(bench, choice):
    """Without a candidate to drop, a screen with a rule is a screen: the same refusals prompt by prompt."""
    prompts = len(bench.behaviour.harmful["validation"].prompts)
    rule = drop_rule(prompts, passes=0.99, hopeless=1.0, every=4)
    half = replace(choice, gamma=0.5 * choice.gamma)
    (drawn,) = screening.screen(bench.lab, recipes(bench, choice), [half], bench.behaviour, rule=rule)
    (whole,) = screening.screen(bench.lab, recipes(bench, choice), [half], bench.behaviour)
    assert not drawn.dropped
    assert drawn.refused == whole.refused


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize(("settings", "dropping"), [({}, True), ({"drop_hopeless": False}, False), ({"max_refusal": 1.0}, False)])
def test_nothing_is_dropped_where_the_settings_say_so(bench, configured, settings, dropping):
    lab = bench.lab.only(*selection.SETTINGS)
    lab.config = configured(**settings)
    rule = screening.rule_of(lab, bench.behaviour, candidates=10)
    assert (rule is not None) == dropping
    if rule is not None:
        assert rule.alpha == lab.config.drop_error / 10
        # Whatever could still work on all prompts is dropped with at most the stated probability.
        assert max(rule.dropped_by(refused)[-1] for refused in range(rule.allowed + 1)) <= rule.alpha


def test_few_prompts_are_all_read(bench, configured):
    lab = bench.lab.only(*selection.SETTINGS)
    lab.config = configured()
    assert len(bench.behaviour.harmful["validation"].prompts) <= LOOKS[0]
    assert screening.rule_of(lab, bench.behaviour, candidates=10) is None


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("limit", [0.02, 0.0])
def test_dropping_changes_neither_the_choice_nor_its_figures(bench, configured, limit):
    """With a limit that something meets, and with one that nothing does: then what was dropped is read to the end."""
    picks = {}
    for drop in (True, False):
        lab = bench.lab.only(*selection.SETTINGS)
        strengths = (0.25, 0.5) if limit == 0.0 else (0.5, 1.0, 1.5, 2.0)
        lab.config = configured(drop_hopeless=drop, max_refusal=limit, strengths=strengths)
        picks[drop] = selection.select(lab, {0.0: bench.recipe("standard", 0.0)}, bench.behaviour)
    assert picks[True]["dropped"] > 0
    assert picks[False]["dropped"] == 0
    assert picks[True]["choice"] == picks[False]["choice"]
    assert picks[True]["feasible"] == picks[False]["feasible"] == (limit > 0)
    assert picks[True]["validation"]["refusal_rate"] == picks[False]["validation"]["refusal_rate"]


def test_a_dropped_candidate_has_no_rates():
    candidate = Candidate(Choice(None, 0, 5, 1.0), (True, False, True, True), None)
    told = candidate.to_json()
    assert (told["refusal"], told["kl"], told["dropped"]) == (None, None, [3, 4])
    whole = Candidate(Choice(3, 0, 5, 1.0), (True, False), 0.5, (0.5,))
    found = selection.by_source({"grid": [told, whole.to_json()]}, limit=0.02)
    assert found["per_layer"]["dropped"] == [3, 4]
    assert found["single"]["kl"] == 0.5
    assert torch.isfinite(torch.tensor(whole.refusal))
