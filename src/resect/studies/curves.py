"""KL against refusal over strengths, and the KL of every arm read off at one refusal rate.

Arms reach different refusal rates, so their KL at the chosen strengths cannot be compared as it stands. Here each arm's
strength is turned up until its refusal rate falls to the same level, and the KL is read there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resect.edit.plan import EditPlan
from resect.evaluation import drift, recovery
from resect.evaluation.statistics import mean_of, rate
from resect.evaluation.verdicts import judge_markers
from resect.studies.arms import Choice, Recipe
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab
from resect.studies.scores import Reference

DRAWS = 1000
Floats = NDArray[np.float64]


def trace(lab: Lab, recipe: Recipe, choice: Choice, behaviour: Behaviour, reference: Reference) -> list[dict[str, Any]]:
    """Return the arm's points over rising strengths on test prompts, with per-prompt results.

    The curve ends after two strengths in a row at or below `max_refusal`: the crossing is bracketed, and more strength only costs KL.
    """
    points: list[dict[str, Any]] = []
    for gamma in sorted(lab.config.curve_strengths):
        points.append(measure(lab, recipe.plan(lab.writers, choice, gamma=gamma), behaviour, reference, strength=gamma))
        if len(points) > 1 and all(sum(p["refused"]) <= lab.config.max_refusal * len(p["refused"]) for p in points[-2:]):
            break
    return points


def measure(lab: Lab, plan: EditPlan, behaviour: Behaviour, reference: Reference, *, strength: float) -> dict[str, Any]:
    """Return one point, prompt by prompt: refusals (benign ones by the log-odds judge, which needs no responses), KL, recovery."""
    harmful, harmless = behaviour.harmful["test"], behaviour.harmless["test"]
    length = lab.config.max_new_tokens if reference.twin else lab.config.opening_tokens
    with lab.edited(plan):
        said = lab.respond(harmful.prompts, max_new_tokens=length)
        logprobs = lab.first_logprobs(harmless.prompts)
    return {
        "strength": strength,
        "refused": [v == "refuse" for v in judge_markers(said)],
        "benign_refused": behaviour.refuses_at_once(logprobs),
        "kl": drift.kl_first_token(harmless.logprobs, logprobs).tolist(),
        "recovered": None if reference.twin is None else list(recovery.agreement(said, reference.twin)),
    }


def summary(points: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Return the curve with measurements in place of per-prompt results."""
    return [
        {
            "strength": p["strength"],
            "refusal_rate": rate(p["refused"]).to_json(),
            "benign_refusal_rate": rate(p["benign_refused"]).to_json(),
            "kl_first_token": mean_of(p["kl"], unit="nats", seed=seed).to_json(),
            "recovery": None if p["recovered"] is None else rate(p["recovered"]).to_json(),
        }
        for p in points
    ]


def matched(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], *, refusal: float, pairs: Sequence[tuple[str, str]], seed: int
) -> dict[str, Any]:
    """Return every arm's KL at the refusal rate, and ratios of KL between pairs of arms with bootstrap intervals.

    The bootstrap resamples harmful and harmless prompts, the same ones for every arm, and reads the KL off anew each time; an
    interval is given if the rate is reached in at least 95 % of the draws.
    """
    arrays = {arm: _arrays(points) for arm, points in curves.items()}
    arms = {arm: _reading(*a, refusal) for arm, a in arrays.items()}
    ratios = [{"a": a, "b": b, "kl_ratio": _ratio(arrays[a], arrays[b], refusal, seed)} for a, b in pairs]
    return {"refusal": refusal, "arms": arms, "ratios": ratios}


def _arrays(points: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats, Floats]:
    """Return strengths [strength], refused [strength, prompt] and KL [strength, prompt]."""
    ordered = sorted(points, key=lambda p: p["strength"])
    strengths, refused, kl = ([p[key] for p in ordered] for key in ("strength", "refused", "kl"))
    return np.array(strengths, float), np.array(refused, float), np.array(kl, float)


def _reading(strengths: Floats, refused: Floats, kl: Floats, refusal: float) -> dict[str, Any]:
    rates = refused.mean(1)
    at, value = read_off(strengths, rates, kl.mean(1), refusal)
    if value is None:
        return {"kl": None, "strength": None, "note": f"never below {rates.min():.1%} refusals, at strength {strengths[rates.argmin()]:g}"}
    return {"kl": value, "strength": at, "note": None}


def read_off(strengths: Floats, rates: Floats, kl: Floats, refusal: float) -> tuple[float | None, float | None]:
    """Return (strength, KL) where the refusal rate first falls to `refusal`, linear between strengths; (None, None) if it never does.

    Strength 0 is the base model: KL 0. If the rate is reached before the first strength of the curve, the first is taken,
    since nothing is known below it.
    """
    below = np.flatnonzero(rates <= refusal)
    if not len(below):
        return None, None
    i = int(below[0])
    if i == 0 or rates[i - 1] == rates[i]:
        return float(strengths[i]), float(kl[i])
    share = (rates[i - 1] - refusal) / (rates[i - 1] - rates[i])
    return tuple(float(x[i - 1] + share * (x[i] - x[i - 1])) for x in (strengths, kl))  # type: ignore[return-value]


def _ratio(a: tuple[Floats, Floats, Floats], b: tuple[Floats, Floats, Floats], refusal: float, seed: int) -> dict[str, float | None] | None:
    value = _kl_ratio(a, b, refusal)
    if value is None:
        return None
    random = np.random.default_rng(seed)
    harmful, harmless = a[1].shape[1], a[2].shape[1]
    draws = []
    for _ in range(DRAWS):
        rows, columns = random.integers(harmful, size=harmful), random.integers(harmless, size=harmless)
        drawn = _kl_ratio((a[0], a[1][:, rows], a[2][:, columns]), (b[0], b[1][:, rows], b[2][:, columns]), refusal)
        if drawn is not None:
            draws.append(drawn)
    if len(draws) < 0.95 * DRAWS:
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}


def _kl_ratio(a: tuple[Floats, Floats, Floats], b: tuple[Floats, Floats, Floats], refusal: float) -> float | None:
    first, second = (read_off(s, r.mean(1), k.mean(1), refusal)[1] for s, r, k in (a, b))
    return None if first is None or second is None or second <= 0 else first / second
