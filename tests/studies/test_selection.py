"""Choosing on validation: one rule, told by planted candidates, and what it gives on the organism."""

import json
from copy import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resect.evaluation import drift
from resect.studies import selection
from resect.studies.arms import Choice
from resect.studies.selection import Candidate

RATES = st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.3, 1.0])


def flags(rate: float) -> tuple[bool, ...]:
    """A hundred prompts, of which this share refuses."""
    return tuple(i < round(100 * rate) for i in range(100))


class Planted:
    """Three places whose refusal and KL at each strength are given, on one token and on whole responses."""

    def __init__(self, monkeypatch, bench, config, table):
        self.table, self.bench, self.screened = table, bench, []
        self.lab = copy(bench.lab)
        self.lab.config = config
        monkeypatch.setattr(selection, "places", lambda *_: [Choice(source, 0, 5, 1.0) for source in (None, 3, 4)])
        monkeypatch.setattr(selection, "screen", self.screen)
        monkeypatch.setattr(selection, "verify", self.verify)
        monkeypatch.setattr(selection, "figures", lambda *_: {})

    def screen(self, _lab, _recipes, choices, _behaviour, **_):
        self.screened += choices
        return [Candidate(c, flags(self.table[c.source, c.gamma][0]), self.table[c.source, c.gamma][2]) for c in choices]

    def verify(self, _lab, _recipes, candidate, _behaviour):
        first, whole, kl = self.table[candidate.choice.source, candidate.choice.gamma]
        return Candidate(candidate.choice, flags(max(first, whole)), kl)

    def select(self):
        return selection.select(self.lab, {0.0: self.bench.recipe("standard", 0.0)}, self.bench.behaviour)


@given(data=st.data())
def test_the_least_kl_of_what_works_wins_and_else_the_least_refusal(bench, configured, data):
    config = configured(max_refusal=0.02, finalists=18)
    places = [(source, gamma) for source in (None, 3, 4) for gamma in config.strengths]
    table = {place: data.draw(st.tuples(RATES, RATES, st.floats(0, 10))) for place in places}
    with pytest.MonkeyPatch.context() as monkeypatch:
        planted = Planted(monkeypatch, bench, config, table)
        pick = planted.select()
    screened = [(c.source, c.gamma) for c in planted.screened]
    whole = {place: max(table[place][:2]) for place in screened}
    works = [place for place in screened if whole[place] <= 0.02]
    got = pick["choice"]["source"], pick["choice"]["gamma"]
    assert pick["feasible"] == bool(works)
    assert pick["candidates"] == len(screened) == len(pick["grid"])
    if works:
        assert table[got][2] == min(table[place][2] for place in works)
    else:
        assert whole[got] == min(whole.values())


def test_a_place_is_left_once_two_strengths_work(monkeypatch, bench, configured):
    config = configured()
    table = {(source, gamma): (0.0 if gamma >= 1.0 else 1.0, 0.0, gamma) for source in (None, 3, 4) for gamma in config.strengths}
    planted = Planted(monkeypatch, bench, config, table)
    planted.select()
    assert [c.gamma for c in planted.screened if c.source is None] == [1.0, 1.5]


def test_the_choice_comes_back_from_its_file(picked):
    for pick in picked.values():
        again = json.loads(json.dumps(pick))
        assert selection.chosen(again) == selection.chosen(pick)
        assert again == pick


def test_every_arm_tries_its_own_softness_and_the_same_places(picked):
    grids = {arm: {(c["source"], c["first"], c["last"]) for c in pick["grid"]} for arm, pick in picked.items()}
    assert grids["standard"] == grids["projected"] == grids["sra"]
    assert {c["softness"] for c in picked["sra"]["grid"]} == {0.1, 1.0}
    assert {c["softness"] for c in picked["standard"]["grid"]} == {0.0}


def test_the_figures_are_those_of_the_edit(bench, picked):
    recipe, choice = bench.chosen("sra", picked["sra"])
    harmless = bench.behaviour.harmless["validation"]
    with bench.lab.edited(recipe.plan(bench.lab.writers, choice)):
        moved = bench.lab.first_logprobs(harmless.prompts)
    kl = drift.kl_first_token(harmless.logprobs, moved).mean()
    figures = picked["sra"]["validation"]
    assert figures["kl_first_token"]["value"] == pytest.approx(float(kl), rel=1e-5)
    assert figures["refusal_rate"]["n"] == 16
    base = sum(v == "refuse" for v in bench.behaviour.harmful["validation"].verdicts) / 16
    assert figures["refusal_rate"]["value"] < base


def test_a_prompt_that_either_judge_calls_refused_is_refused(monkeypatch, bench, picked):
    recipe, choice = bench.chosen("sra", picked["sra"])
    recipes = {choice.softness: recipe}
    (screened,) = selection.screen(bench.lab, recipes, [choice], bench.behaviour)
    by_log_odds = tuple(i == 0 for i in range(len(screened.refused)))
    monkeypatch.setattr(selection, "judge_markers", lambda said: tuple("refuse" if i == 1 else "comply" for i in range(len(said))))
    by_either = selection.verify(bench.lab, recipes, Candidate(choice, by_log_odds, screened.kl), bench.behaviour)
    # Of the prompts that are read in whole responses, the ones after the first, the second refuses.
    assert by_either.refused[:3] == (True, False, True)
    assert by_either.refusal == 2 / len(screened.refused)


def test_edits_that_share_a_batch_are_screened_alike(monkeypatch, bench, picked):
    recipe, choice = bench.chosen("sra", picked["sra"])
    choices = [replace(choice, gamma=gamma) for gamma in (0.5, 1.0, 2.0)]
    apart = selection.screen(bench.lab, {choice.softness: recipe}, choices, bench.behaviour)
    monkeypatch.setattr(type(bench.lab), "at_once", 3)
    together = selection.screen(bench.lab, {choice.softness: recipe}, choices, bench.behaviour)
    assert [c.refused for c in together] == [c.refused for c in apart]
    assert [k for c in together for k in c.kls] == pytest.approx([k for c in apart for k in c.kls], rel=1e-3, abs=1e-7)
    assert len({c.kl for c in apart}) == 3
