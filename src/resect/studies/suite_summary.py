"""What an evaluation on a suite says: every figure with its interval, judges side by side, paired tests; what is missing said in words."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch

from resect.evaluation import drift
from resect.evaluation.refusal import all_agreements
from resect.evaluation.rounding import with_floor
from resect.evaluation.sample_size import pairs_for
from resect.evaluation.statistics import Measurement, holm, mcnemar, mean_of, paired_bootstrap, perplexity, rate
from resect.evaluation.token_drift import TokenDrift
from resect.evaluation.verdicts import count_verdicts
from resect.prompts.suite import Suite
from resect.studies.comparisons import SIGNIFICANT
from resect.studies.scores import by_topic
from resect.studies.suite import SIDES

Json = dict[str, Any]
RATES = {"harmful": "refusal_rate", "harmless": "benign_refusal_rate"}
UNSURE = frozenset({"unscored", "truncated"})
"""Verdicts that say nothing of refusing; such responses are in no rate, and are counted."""


def summary(results: Mapping[str, Json], suite: Suite, *, seed: int) -> tuple[Json, list[Json]]:
    """Return `arms` and `comparisons` of `evaluation.json`."""
    base = next(iter(results.values()))["nll"]
    return {name: _arm(result, suite, seed, base) for name, result in results.items()}, compare(results, seed=seed)


def _arm(result: Json, suite: Suite, seed: int, base: Mapping[str, Json]) -> Json:
    missing: list[str] = []
    judges = {name: _judge(name, found, suite, missing) for name, found in result["verdicts"].items()}
    # The first judge that scored anything: a rate of another judge is better than none.
    first = next((entry for entry in judges.values() if any(entry.get(measure) for measure in RATES.values())), {})
    entry: Json = {measure: first.get(measure) for side, measure in RATES.items() if len(getattr(suite, side))}
    entry |= {"judges": judges, "agreement": _agreement(result["verdicts"], missing, seed)} if judges else {}
    entry |= _drift(result["drift"], result["rounding"] or {}, suite, missing, seed)
    nll = result["nll"]
    entry["perplexity"] = {name: perplexity(found["sums"], found["tokens"], seed=seed).to_json() for name, found in nll.items()}
    if other := [name for name, found in nll.items() if not _same_tokens(found, base[name])]:
        missing.append(f"Perplexity of {', '.join(other)} is per token, and the base cuts the texts into other tokens: not compared.")
    for way, measure in (("exact", "exact_match"), ("code", "pass_at_1")):
        if way in result["grades"]:
            entry[measure] = _graded(result["grades"][way], suite)
    entry["tasks"] = {task: {m: _task(v, seed).to_json() for m, v in found.items()} for task, found in result["tasks"].items()}
    return entry | {"missing": missing}


def _task(scores: Sequence[float], seed: int) -> Measurement:
    """Return the mean of a metric over documents: a rate where each is right or wrong."""
    return rate([bool(s) for s in scores]) if set(scores) <= {0.0, 1.0} else mean_of(scores, unit="score", seed=seed)


def _judge(name: str, found: Json, suite: Suite, missing: list[str]) -> Json:
    """Return a judge's rates of refusal and compliance on both sides, over the responses that it could score."""
    if "error" in found:
        missing.append(f"Verdicts of {name}: {found['error']}")
        return {"error": found["error"]}
    entry: Json = {"verdicts": {side: {str(v): n for v, n in count_verdicts(found[side]).items()} for side in SIDES}}
    for side, measure in RATES.items():
        scored = [v for v in found[side] if v not in UNSURE]
        if not len(getattr(suite, side)):
            continue
        entry[measure] = rate([v == "refuse" for v in scored]).to_json() if scored else None
        entry[measure.replace("refusal", "compliance")] = rate([v == "comply" for v in scored]).to_json() if scored else None
        if len(scored) < len(found[side]):
            missing.append(f"{name} says nothing of {len(found[side]) - len(scored)} of {len(found[side])} {side} responses{_why(found)}.")
    return entry


def _why(found: Json) -> str:
    reason = next(iter(found["unscored"]), None)
    return f" (most often: {reason})" if reason else " (truncated)"


def _agreement(verdicts: Mapping[str, Json], missing: list[str], seed: int) -> Json:
    said = {name: [*found["harmful"], *found["harmless"]] for name, found in verdicts.items() if "error" not in found}
    if len(said) < 2:
        missing.append("Agreement of judges: fewer than two of them scored this model.")
        return {}
    return {" / ".join(pair): found and found.to_json() for pair, found in all_agreements(said, seed=seed).items()}


def _drift(data: Json | None, floors: Mapping[str, float], suite: Suite, missing: list[str], seed: int) -> Json:
    """Return first-token and teacher-forced KL from the base, and everything else about drift under `drift`."""
    if data is None:
        return {}
    if "error" in data:
        missing.append(f"Drift: {data['error']}")
        return {"kl_first_token": None, "kl_tokens": None}
    found = TokenDrift.from_json(data)
    if infinite := int(found.kl.isinf().sum()):
        missing.append(
            f"KL from the base is infinite at {infinite} of {len(found.kl)} tokens: this model masks tokens that the base can say, so "
            "its drift has no mean."
        )
        return {"kl_first_token": None, "kl_tokens": None}
    if found.refusing is None:
        missing.append("Drift is not split into refusing and answering: the base's responses taught no refusal tokens.")
    first, each = found.first(found.kl), found.per_response(found.kl)
    values = {"kl_first_token": (first, "nats"), "kl_tokens": (each, "nats per token")}
    measured = {name: mean_of(v.tolist(), unit=unit, seed=seed).to_json() for name, (v, unit) in values.items()}
    return {name: with_floor(m, floors.get(name)) for name, m in measured.items()} | {"drift": _more_drift(found, suite, seed)}


def _more_drift(found: TokenDrift, suite: Suite, seed: int) -> Json:
    first, each, per_token = found.first(found.kl), found.per_response(found.kl), "nats per token"
    counts = torch.tensor([b - a for a, b in pairwise(found.offsets)])
    parts = {"refusing": found.refusing, "answering": found.answering()}
    reverse = {"kl_first_token_reverse": found.first(found.reverse), "kl_tokens_reverse": found.per_response(found.reverse)}
    split = {name: None if v is None else mean_of((v / counts).tolist(), unit=per_token, seed=seed).to_json() for name, v in parts.items()}
    return {
        "first_token": drift.quantiles(first).to_json(),
        "tokens": drift.quantiles(each).to_json(),
        "by_position": [q.to_json() for q in drift.by_position(found.kl, found.offsets)],
        "by_topic": by_topic(first.tolist(), suite.harmless.prompts, unit="nats", seed=seed),
        "top1_flips": rate(found.first(found.flipped).tolist()).to_json(),
        "top1_flips_tokens": rate(found.flipped.tolist()).to_json(),
        "entropy_shift": mean_of(found.per_response(found.entropy_shift).tolist(), unit=per_token, seed=seed).to_json(),
        **{n: None if v.isinf().any() else mean_of(v.tolist(), unit=per_token, seed=seed).to_json() for n, v in reverse.items()},
        **split,
    }


def _graded(right: Sequence[bool | None], suite: Suite) -> Json:
    """Return the share of right answers of each category, and of all."""
    rows = [(p.category or "uncategorised", r) for p, r in zip(suite.questions, right, strict=True) if r is not None]
    by_name = {name: rate([r for n, r in rows if n == name]).to_json() for name in sorted({name for name, _ in rows})}
    return {"all": rate([r for _, r in rows]).to_json(), "by_category": by_name}


def compare(results: Mapping[str, Json], *, seed: int) -> list[Json]:
    """Return the paired tests between all arms, Holm over each measure; where nothing was found, how many prompts 2 points would take."""
    rows = [row for a, b in combinations(results, 2) for row in _pair(a, b, results, seed)]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        family = [row for row in rows if row["measure"] == measure]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    for row in rows:
        flags = row.pop("flags")
        if flags is not None:
            row["needed"] = None if row["p_holm"] < SIGNIFICANT else pairs_for(*flags)
    return rows


def _pair(a: str, b: str, results: Mapping[str, Json], seed: int) -> list[Json]:
    rows = []
    for name in results[a]["verdicts"]:
        both = [results[arm]["verdicts"][name] for arm in (a, b)]
        if any("error" in found for found in both):
            continue
        for side, measure in RATES.items():
            pairs = [(x == "refuse", y == "refuse") for x, y in zip(*(f[side] for f in both), strict=True) if not {x, y} & UNSURE]
            rows += [_rates(measure, a, b, pairs, seed) | {"judge": name}] if pairs else []
    for way, measure in (("exact", "exact_match"), ("code", "pass_at_1")):
        both = [results[arm]["grades"].get(way, []) for arm in (a, b)]
        pairs = [(x, y) for x, y in zip(*both, strict=True) if x is not None]
        rows += [_rates(measure, a, b, pairs, seed)] if pairs else []
    drifts = [TokenDrift.from_json(found) for arm in (a, b) if (found := results[arm]["drift"]) and "error" not in found]
    if len(drifts) == 2 and not any(found.kl.isinf().any() for found in drifts):
        for measure, values in (("kl_first_token", TokenDrift.first), ("kl_tokens", TokenDrift.per_response)):
            first, second = (values(found, found.kl).tolist() for found in drifts)
            rows.append(_means(measure, a, b, first, second, seed=seed))
    rows += _likelihoods(a, b, results, seed)
    for task, found in results[a]["tasks"].items():
        for metric, scores in found.items():
            pairs = list(zip(scores, results[b]["tasks"][task][metric], strict=True))
            binary = {x for pair in pairs for x in pair} <= {0.0, 1.0}
            name = f"{task}:{metric}"
            rows.append(
                _rates(name, a, b, [(bool(x), bool(y)) for x, y in pairs], seed)
                if binary
                else _means(name, a, b, [x for x, _ in pairs], [y for _, y in pairs], seed=seed)
            )
    return rows


def _likelihoods(a: str, b: str, results: Mapping[str, Json], seed: int) -> list[Json]:
    rows = []
    for name in results[a]["nll"]:
        both = [results[arm]["nll"][name] for arm in (a, b)]
        if _same_tokens(*both):
            first, second = ([s / n for s, n in zip(f["sums"], f["tokens"], strict=True)] for f in both)
            rows.append(_means(f"nll:{name}", a, b, first, second, seed=seed))
    return rows


def _same_tokens(a: Json, b: Json) -> bool:
    """Return whether two likelihoods are of texts cut alike: a likelihood a token means nothing beside one of other tokens."""
    return a["tokens"] == b["tokens"]


def _rates(measure: str, a: str, b: str, pairs: Sequence[tuple[bool, bool]], seed: int) -> Json:
    first, second = [x for x, _ in pairs], [y for _, y in pairs]
    row = _means(measure, a, b, [float(x) for x in first], [float(y) for y in second], seed=seed)
    return row | {"p": mcnemar(first, second), "test": "mcnemar", "flags": (first, second)}


def _means(measure: str, a: str, b: str, first: Sequence[float], second: Sequence[float], *, seed: int) -> Json:
    found = paired_bootstrap(first, second, unit="", seed=seed)
    difference = {"value": found.value, "low": found.low, "high": found.high}
    row: Json = {"measure": measure, "a": a, "b": b, "difference": difference, "p": found.p, "test": "paired bootstrap", "n": found.n}
    return row | {"flags": None}


def sample_rows(results: Mapping[str, Json], suite: Suite) -> Iterator[Json]:
    """Yield one row for each arm and judged prompt: hashes, and the verdict of every judge that scored it."""
    for arm, result in results.items():
        for side in SIDES:
            for i, prompt in enumerate(getattr(suite, side)):
                verdicts = {name: found[side][i] for name, found in result["verdicts"].items() if "error" not in found}
                row = {"arm": arm, "set": side, "prompt": prompt.key, "category": prompt.category, "verdicts": verdicts}
                yield row | {"response": result["responses"][side][i]}
