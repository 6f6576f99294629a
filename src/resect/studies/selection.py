"""Choosing strength and layers on validation, by one rule for every arm.

Screen: one forward pass over the validation prompts gives each candidate its refusal rate by refusal-token log-odds and its
first-token KL on harmless prompts. The best `finalists` are then verified by responses. The rule: of the candidates whose
refusal rate is at most `max_refusal`, the one with the least KL; if there is none, the one with the lowest refusal rate, ties by KL.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from resect.evaluation import drift
from resect.evaluation.statistics import mean_of, rate
from resect.evaluation.verdicts import judge_markers
from resect.studies.arms import Choice, Recipe, choice_grid
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab


@dataclass(frozen=True)
class Candidate:
    """One choice with what validation says of it; `verified` once the refusals are counted on responses."""

    choice: Choice
    refusal: float
    kl: float
    verified: bool = False


def select(lab: Lab, recipe: Recipe, behaviour: Behaviour) -> dict[str, Any]:
    """Return the chosen candidate of an arm as JSON: choice, feasibility, validation figures, number of candidates."""
    candidates = [screen(lab, recipe, choice, behaviour) for choice in choice_grid(lab.config, lab.layers)]
    limit = lab.config.max_refusal
    finalists = [verify(lab, recipe, c, behaviour) for c in sorted(candidates, key=lambda c: _rank(c, limit))[: lab.config.finalists]]
    best = min(finalists, key=lambda c: _rank(c, limit))
    return {
        "choice": asdict(best.choice),
        "feasible": best.refusal <= limit,
        "candidates": len(candidates),
        "validation": validation_figures(lab, recipe, best.choice, behaviour),
        "grid": [{**asdict(c.choice), "refusal": c.refusal, "kl": c.kl} for c in candidates],
    }


def _rank(candidate: Candidate, limit: float) -> tuple[bool, float, float]:
    works = candidate.refusal <= limit
    return (not works, 0.0 if works else candidate.refusal, candidate.kl)


def screen(lab: Lab, recipe: Recipe, choice: Choice, behaviour: Behaviour) -> Candidate:
    """Return the candidate's refusal rate by log-odds and its mean first-token KL, from one pass over both sides."""
    harmful, harmless = behaviour.harmful["validation"], behaviour.harmless["validation"]
    prompts = [*harmful.prompts, *harmless.prompts]
    with lab.edited(recipe.plan(lab.writers, choice)):
        logprobs = lab.first_logprobs(prompts)
    split = len(harmful.prompts)
    refused = behaviour.refuses_at_once(logprobs[:split])
    kl = drift.kl_first_token(harmless.logprobs, logprobs[split:])
    return Candidate(choice, refusal=sum(refused) / len(refused), kl=float(kl.mean()))


def verify(lab: Lab, recipe: Recipe, candidate: Candidate, behaviour: Behaviour) -> Candidate:
    """Return the candidate with its refusal rate counted on responses: a refusal by either judge counts."""
    refused = _refused(lab, recipe, candidate.choice, behaviour)
    return replace(candidate, refusal=max(candidate.refusal, sum(refused) / len(refused)), verified=True)


def _refused(lab: Lab, recipe: Recipe, choice: Choice, behaviour: Behaviour) -> list[bool]:
    prompts = behaviour.harmful["validation"].prompts
    with lab.edited(recipe.plan(lab.writers, choice)):
        responses = lab.respond(prompts, max_new_tokens=lab.config.opening_tokens)
    return [v == "refuse" for v in judge_markers(responses)]


def validation_figures(lab: Lab, recipe: Recipe, choice: Choice, behaviour: Behaviour) -> dict[str, Any]:
    """Return the chosen candidate's validation figures with their intervals."""
    harmless = behaviour.harmless["validation"]
    with lab.edited(recipe.plan(lab.writers, choice)):
        logprobs = lab.first_logprobs(harmless.prompts)
    kl = drift.kl_first_token(harmless.logprobs, logprobs)
    return {
        "refusal_rate": rate(_refused(lab, recipe, choice, behaviour)).to_json(),
        "kl_first_token": mean_of(kl.tolist(), unit="nats", seed=lab.config.seed).to_json(),
    }


def chosen(selection: dict[str, Any]) -> Choice:
    """Return the choice that `select` stored."""
    return Choice(**selection["choice"])
