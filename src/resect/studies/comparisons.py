"""Arms against arms: paired tests with Holm's correction, and how much of a gain is cleaning and how much the strength rule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resect.evaluation.sample_size import pairs_for
from resect.evaluation.statistics import holm, mcnemar, paired_bootstrap

REFERENCES = ("standard", "projected", "sra")
"""Arms that every other arm is compared with: the paper's baseline, the peers' baseline, the paper's method."""

SIGNIFICANT = 0.05
"""Corrected p-values below this count as a difference found."""


def pairs(arms: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (reference, other) for each reference and every arm after it in the tables; each pair once."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    for reference in REFERENCES:
        for other in arms:
            if reference in arms and other not in ("base", reference):
                found.setdefault(frozenset((reference, other)), (reference, other))
    return tuple(found.values())


def compare(results: Mapping[str, Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Return the tests between arms on the same prompts: McNemar for rates, paired bootstrap for KL; Holm over each measure."""
    rows = []
    for a, b in pairs(tuple(results)):
        rows.append(_refusals(a, b, results, seed))
        rows += [_drift(measure, a, b, results, seed) for measure in ("kl_first_token", "kl_tokens")]
    for measure in ("refusal_rate", "kl_first_token", "kl_tokens"):
        family = [row for row in rows if row["measure"] == measure]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    for row in rows:
        if row["measure"] == "refusal_rate":
            first, second = (refusals(results[row[arm]]) for arm in ("a", "b"))
            row["needed"] = None if row["p_holm"] < SIGNIFICANT else pairs_for(first, second)
    return rows


def refusals(result: Mapping[str, Any]) -> list[bool]:
    """Return which harmful prompts were refused, by markers."""
    return [v == "refuse" for v in result["harmful"]["verdicts"]]


def _refusals(a: str, b: str, results: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    first, second = refusals(results[a]), refusals(results[b])
    difference = paired_bootstrap([float(x) for x in first], [float(x) for x in second], unit="fraction", seed=seed)
    return _row("refusal_rate", a, b, difference.to_json(), mcnemar(first, second), "mcnemar", len(first))


def _drift(measure: str, a: str, b: str, results: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    first, second = results[a][measure], results[b][measure]
    difference = paired_bootstrap(first, second, unit="nats", seed=seed)
    return _row(measure, a, b, difference.to_json(), difference.p, "paired bootstrap", len(first))


def _row(measure: str, a: str, b: str, difference: Mapping[str, Any], p: float, test: str, n: int) -> dict[str, Any]:
    kept = {key: difference[key] for key in ("value", "low", "high")}
    return {"measure": measure, "a": a, "b": b, "difference": kept, "p": p, "test": test, "n": n}


def decompose(matched: Mapping[str, Any], *, rule: str) -> dict[str, Any]:
    """Return how much of SRA's gain at matched refusal is the cleaning and how much the strength rule.

    The 2 x 2 of direction (raw, cleaned) and rule (flat, energy): the total gain log(KL raw flat / KL cleaned energy) is split into the
    mean effect of each factor over the levels of the other (Shapley value), so that the two shares add up to 1. Each cell has the
    layers and lambda that validation chose for it, as in the tables.
    """
    cells = (("standard", False, "flat"), ("standard_sra_strength", False, "energy"), ("sra_flat", True, "flat"), ("sra", True, "energy"))
    kl = {arm: matched["arms"].get(arm, {}).get("kl") for arm, _, _ in cells}
    rows = [{"arm": arm, "cleaned": cleaned, "rule": rule, "kl_matched": kl[arm]} for arm, cleaned, rule in cells]
    if rule != "energy":
        sentence = "The gain is not split: the gamma rule of this run is flat, so there is no strength rule to tell apart."
        return {"rows": [], "cleaning_share": None, "strength_share": None, "sentence": sentence}
    if any(not value for value in kl.values()):
        missing = ", ".join(arm for arm, value in kl.items() if not value)
        sentence = f"The gain cannot be split: no KL at matched refusal for {missing}."
        return {"rows": rows, "cleaning_share": None, "strength_share": None, "sentence": sentence}
    log = {arm: math.log(value) for arm, value in kl.items() if value}
    by_cleaning = ((log["standard"] - log["sra_flat"]) + (log["standard_sra_strength"] - log["sra"])) / 2
    by_strength = ((log["standard"] - log["standard_sra_strength"]) + (log["sra_flat"] - log["sra"])) / 2
    total = by_cleaning + by_strength
    sentence = (
        f"At matched refusal KL of standard is {math.exp(total):.2f} times that of SRA: the cleaning alone accounts for a factor "
        f"{math.exp(by_cleaning):.2f}, the strength rule for {math.exp(by_strength):.2f}."
    )
    shares = (by_cleaning / total, by_strength / total) if abs(total) > 1e-9 else (None, None)
    return {"rows": rows, "cleaning_share": shares[0], "strength_share": shares[1], "sentence": sentence}
