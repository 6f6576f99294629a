"""Choosing strength, layers and softness on validation, by one rule for every arm.

Every source, window and softness of the cleaning is tried at rising strengths. Screen: one forward pass over the validation
prompts gives a candidate its refusal rate by refusal-token log-odds and its first-token KL on harmless prompts (`screening`, which
drops hopeless ones early). Then whole responses are read, best candidate first. The rule: of the candidates whose refusal rate is at
most `max_refusal` by both, the one with the least KL; if none of the best `finalists` is, the one with the lowest refusal rate, ties by
KL, for which those that were dropped are read to the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from resect.config import SRAConfig
from resect.evaluation.sequential import DropRule
from resect.evaluation.settled import stop_when_settled
from resect.evaluation.statistics import mean_of, rate
from resect.evaluation.verdicts import judge_markers
from resect.studies.arms import Choice, places
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab
from resect.studies.screening import SETTINGS as DROPPING
from resect.studies.screening import Candidate, Recipes, rule_of, screen

PLACES = ("windows", "source", "source_layers")
"""Settings that say where edits are tried (`arms.places`)."""
READING = ("opening_tokens", "seed")
"""Settings that `validate` reads."""
SETTINGS = (*PLACES, *READING, *DROPPING, "strengths", "finalists")
"""Settings that `select` reads."""


def select(lab: Lab[SRAConfig], recipes: Recipes, behaviour: Behaviour) -> dict[str, Any]:
    """Return the chosen candidate of an arm as JSON: choice, feasibility, validation figures, and every candidate that was tried."""
    tried, limit = grid(lab, recipes), lab.config.max_refusal
    rule = rule_of(lab, behaviour, candidates=len(tried) * len(lab.config.strengths))
    candidates = [candidate for place in tried for candidate in _rise(lab, recipes, place, behaviour, rule)]
    best = _first_that_works(lab, recipes, candidates, behaviour)
    return {
        "choice": asdict(best.choice),
        "feasible": best.refusal <= limit,
        "candidates": len(candidates),
        "dropped": sum(candidate.dropped for candidate in candidates),
        "validation": figures(lab, best),
        "grid": [candidate.to_json() for candidate in candidates],
    }


def grid(lab: Lab[SRAConfig], recipes: Recipes) -> list[Choice]:
    """Return every softness x strength rule x source x window that is tried, at strength 1."""
    return [
        replace(place, softness=softness, rule=rule)
        for softness, recipe in recipes.items()
        for rule, place in product(recipe.profiles, places(lab.config, lab.layers))
    ]


def _rise(lab: Lab[SRAConfig], recipes: Recipes, place: Choice, behaviour: Behaviour, rule: DropRule | None) -> Iterator[Candidate]:
    """Yield candidates of one place at rising strengths, up to the second that works: more strength would only cost more KL.

    The second is kept because the screen reads one token, and the first may turn out too weak on whole responses.
    """
    working = 0
    rising = [replace(place, gamma=gamma) for gamma in sorted(lab.config.strengths)]
    for together in (rising[i : i + lab.at_once] for i in range(0, len(rising), lab.at_once)):
        for candidate in screen(lab, recipes, together, behaviour, rule=rule):
            yield candidate
            working += candidate.works(lab.config.max_refusal)
            if working == 2:
                return


def _first_that_works(lab: Lab[SRAConfig], recipes: Recipes, candidates: Sequence[Candidate], behaviour: Behaviour) -> Candidate:
    """Return the best-ranked candidate that still works on whole responses; if none does, the one that refuses least."""
    limit, finalists = lab.config.max_refusal, lab.config.finalists
    verified = {}
    for candidate in sorted((c for c in candidates if c.works(limit)), key=lambda c: _rank(c, limit))[:finalists]:
        verified[candidate.choice] = verify(lab, recipes, candidate, behaviour)
        if verified[candidate.choice].works(limit):
            return verified[candidate.choice]
    # Reading on makes no candidate work that the screen says does not; it is for the least refusal.
    whole = [c if not c.dropped else screen(lab, recipes, [c.choice], behaviour)[0] for c in candidates]
    ranked = sorted(whole, key=lambda c: _rank(c, limit))[:finalists]
    read = [verified.get(c.choice) or verify(lab, recipes, c, behaviour) for c in ranked]
    return min(read, key=lambda c: _order(c.refusal, c.kl, -1.0))


def _rank(candidate: Candidate, limit: float) -> tuple[bool, float, float]:
    return _order(candidate.refusal, candidate.kl, limit)


def _order(refusal: float | None, kl: float | None, limit: float) -> tuple[bool, float, float]:
    """Sort what works by KL before what does not by refusal rate; what was dropped comes last."""
    if refusal is None or kl is None:
        return (True, 2.0, 0.0)
    works = refusal <= limit
    return (not works, 0.0 if works else refusal, kl)


def verify(lab: Lab[SRAConfig], recipes: Recipes, candidate: Candidate, behaviour: Behaviour) -> Candidate:
    """Return the candidate with refusals read on responses too: a prompt that either judge calls refused is refused."""
    choice, prompts = candidate.choice, behaviour.harmful["validation"].prompts
    asked = prompts.where([not refused for refused in candidate.refused])
    with lab.edited(recipes[choice.softness].plan(lab.writers, choice)):
        responses = lab.respond(asked, max_new_tokens=lab.config.opening_tokens, stop=stop_when_settled(lab.model, refusal_only=True))
    by_markers = iter([v == "refuse" for v in judge_markers(responses)])
    return replace(candidate, refused=tuple(refused or next(by_markers) for refused in candidate.refused))


def validate(lab: Lab[SRAConfig], recipes: Recipes, choice: Choice, behaviour: Behaviour) -> dict[str, Any]:
    """Return the figures of one choice, screened and verified."""
    (candidate,) = screen(lab, recipes, [choice], behaviour)
    return figures(lab, verify(lab, recipes, candidate, behaviour))


def figures(lab: Lab[SRAConfig], candidate: Candidate) -> dict[str, Any]:
    """Return a verified candidate's figures with their intervals."""
    return {
        "refusal_rate": rate(candidate.refused).to_json(),
        "kl_first_token": mean_of(candidate.kls, unit="nats", seed=lab.config.seed).to_json(),
    }


def by_source(pick: dict[str, Any], *, limit: float) -> dict[str, dict[str, Any]]:
    """Return the best candidate of the screen where each layer uses its own direction, and where one layer's is used everywhere."""
    found = {}
    for name, single in (("per_layer", False), ("single", True)):
        rows = [row for row in pick["grid"] if (row["source"] is not None) == single]
        if rows:
            found[name] = min(rows, key=lambda row: _order(row["refusal"], row["kl"], limit))
    return found


def chosen(selection: dict[str, Any]) -> Choice:
    """Return the choice that `select` stored."""
    return Choice(**selection["choice"])
