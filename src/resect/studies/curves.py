"""KL against refusal over strengths, and the KL of every arm read off at one refusal rate.

Arms reach different refusal rates, so their KL at the chosen strengths cannot be compared as it stands. Here each arm's
strength is turned up until its refusal rate falls to the same level, and the KL is read there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resect.config import SRAConfig, StudyConfig
from resect.edit.plan import EditPlan
from resect.evaluation import drift, recovery
from resect.evaluation.settled import stop_when_settled
from resect.evaluation.statistics import mean_of, rate
from resect.evaluation.verdicts import judge_markers
from resect.studies.arms import Choice, Recipe
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab
from resect.studies.scores import Reference

DRAWS = 1000
SETTINGS = ("curve_strengths", "max_refusal", "matched_refusal", "max_new_tokens")
"""Settings that `trace` reads."""
Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats, Floats]


Point = dict[str, Any]


def trace(
    lab: Lab[SRAConfig], recipe: Recipe, choice: Choice, behaviour: Behaviour, reference: Reference, known: Mapping[float, Point]
) -> list[Point]:
    """Return the arm's points over rising strengths on test prompts, with per-prompt results; those that are known are not measured again.

    The curve ends after two strengths in a row at or below both refusal levels of the settings: the crossing is bracketed, and more
    strength only costs KL.
    """
    level = min(lab.config.max_refusal, lab.config.matched_refusal)
    points: list[Point] = []
    for gamma in sorted(lab.config.curve_strengths):
        plan = recipe.plan(lab.writers, choice, gamma=gamma)
        points.append(known[gamma] if gamma in known else measure(lab, plan, behaviour, reference, strength=gamma))
        if len(points) > 1 and all(sum(p["refused"]) <= level * len(p["refused"]) for p in points[-2:]):
            break
    return points


def measure(lab: Lab[StudyConfig], plan: EditPlan, behaviour: Behaviour, reference: Reference, *, strength: float) -> Point:
    """Return one point, prompt by prompt: refusals (benign ones by the log-odds judge, which needs no responses), KL, recovery."""
    harmful, harmless = behaviour.harmful["test"], behaviour.harmless["test"]
    # Recovery compares whole responses; without a twin only "refuse or not" is read off them.
    stop = stop_when_settled(lab.model, refusal_only=True) if reference.twin is None else None
    with lab.edited(plan):
        said = lab.respond(harmful.prompts, max_new_tokens=lab.config.max_new_tokens, stop=stop)
        logprobs = lab.first_logprobs(harmless.prompts)
    return {
        "strength": strength,
        "refused": [v == "refuse" for v in judge_markers(said)],
        "benign_refused": behaviour.refuses_at_once(logprobs),
        "kl": drift.kl_first_token(harmless.logprobs, logprobs).tolist(),
        "recovered": None if reference.twin is None else list(recovery.agreement(said, reference.twin)),
    }


def scored_point(result: Mapping[str, Any], *, strength: float) -> Point:
    """Return the point that scoring an edit on test has measured already (`scores.score`)."""
    return {
        "strength": strength,
        "refused": [v == "refuse" for v in result["harmful"]["verdicts"]],
        "benign_refused": result["harmless"]["log_odds_refuse"],
        "kl": result["kl_first_token"],
        "recovered": result["recovered"],
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
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    base: Sequence[bool],
    refusal: float,
    pairs: Sequence[tuple[str, str]],
    seed: int,
) -> dict[str, Any]:
    """Return every arm's KL at the refusal rate, and ratios of KL between pairs of arms with bootstrap intervals.

    `base` are the base model's refusals on the same prompts: strength 0, KL 0, the start of every curve. The bootstrap resamples
    harmful and harmless prompts, the same ones for every arm, and reads the KL off anew each time. A draw in which an arm never
    gets there counts as infinite KL; a bound that falls on such draws is None.
    """
    arrays = {arm: _arrays(points, base) for arm, points in curves.items()}
    arms = {arm: _reading(*a, refusal) for arm, a in arrays.items()}
    drawn = {arm: _draws(a, refusal, seed) for arm, a in arrays.items()}
    ratios = [{"a": a, "b": b, "kl_ratio": _ratio(arms[a]["kl"], arms[b]["kl"], drawn[a], drawn[b])} for a, b in pairs]
    return {"refusal": refusal, "arms": arms, "ratios": ratios}


def _arrays(points: Sequence[Mapping[str, Any]], base: Sequence[bool]) -> Curve:
    """Return strengths [strength], refused [strength, prompt] and KL [strength, prompt], the base model first."""
    ordered = sorted(points, key=lambda p: p["strength"])
    strengths, refused, kl = ([p[key] for p in ordered] for key in ("strength", "refused", "kl"))
    nothing = [0.0] * len(kl[0])
    return np.array([0.0, *strengths]), np.array([base, *refused], float), np.array([nothing, *kl], float)


def _reading(strengths: Floats, refused: Floats, kl: Floats, refusal: float) -> dict[str, Any]:
    rates = refused.mean(1)
    at, value = read_off(strengths, rates, kl.mean(1), refusal)
    if rates[0] <= refusal:
        return {"kl": None, "strength": None, "note": f"the base model itself refuses only {rates[0]:.1%}"}
    if value is None:
        return {"kl": None, "strength": None, "note": f"never below {rates.min():.1%} refusals, at strength {strengths[rates.argmin()]:g}"}
    return {"kl": value, "strength": at, "note": None}


def read_off(strengths: Floats, rates: Floats, kl: Floats, refusal: float) -> tuple[float | None, float | None]:
    """Return (strength, KL) where the refusal rate first falls to `refusal`, (None, None) if it never does or starts there.

    The first entry is the base model. Between two strengths the rate and the square root of KL are taken as linear, since KL is
    quadratic in small changes.
    """
    below = np.flatnonzero(rates <= refusal)
    if not len(below) or below[0] == 0:
        return None, None
    i = int(below[0])
    share = (rates[i - 1] - refusal) / (rates[i - 1] - rates[i])
    root = np.sqrt(np.maximum(kl, 0))
    strength, middle = (float(x[i - 1] + share * (x[i] - x[i - 1])) for x in (strengths, root))
    return strength, middle**2


def _draws(curve: Curve, refusal: float, seed: int) -> list[float | None]:
    """Return the KL read off in every draw of the bootstrap; the same prompts are drawn for every arm of the same length."""
    strengths, refused, kl = curve
    random = np.random.default_rng(seed)
    harmful, harmless = refused.shape[1], kl.shape[1]
    found = []
    for _ in range(DRAWS):
        rows, columns = random.integers(harmful, size=harmful), random.integers(harmless, size=harmless)
        found.append(read_off(strengths, refused[:, rows].mean(1), kl[:, columns].mean(1), refusal)[1])
    return found


def _ratio(
    first: float | None, second: float | None, a: Sequence[float | None], b: Sequence[float | None]
) -> dict[str, float | None] | None:
    value = _divided(first, second)
    if not np.isfinite(value) or value == 0:
        return None
    draws = [_divided(x, y) for x, y in zip(a, b, strict=True)]
    if np.isnan(draws).mean() > 0.025:
        return {"value": value, "low": None, "high": None}
    # Draws where neither arm gets there say nothing; the others are ordered, with 0 and infinity at the ends.
    low, high = np.quantile([d for d in draws if not np.isnan(d)], [0.025, 0.975], method="inverted_cdf")
    return {"value": value, "low": float(low) if low > 0 else None, "high": float(high) if np.isfinite(high) else None}


def _divided(first: float | None, second: float | None) -> float:
    """Return KL of a over KL of b: infinite if only a never gets there, 0 if only b does not, NaN if neither does."""
    if first is None:
        return np.nan if second is None else np.inf
    return 0.0 if second is None else first / max(second, np.finfo(float).tiny)
