"""The questions of the contrast study, each answered by tests: no sentence here is written without a p-value behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from resect.directions import METHODS
from resect.studies.contrast_arms import PLAIN, RANDOM, VARIANTS, Arm
from resect.studies.contrast_same import one_edit

ALPHA = 0.05
QUESTIONS = {
    "matched": "Does topic-matched contrast remove fewer refusals than unmatched contrast?",
    "paired": "Does contrast matched per pair remove fewer refusals than unmatched contrast?",
    "other_topics": "Is it the topic? The same benign prompts on other topics against unmatched contrast",
    "dealt": "Is it the size of the subtracted means? Unmatched prompts dealt to the categories against unmatched contrast",
    "raw_norm": "Is it the norm? Vectors not normalised against normalised",
    "projected": "Is it the harmless mean? Projected out against left in",
    "topic_free": "Is it the topic part? Projected out against left in",
    "sequential": "Does the order of removal matter? One after another against jointly",
    "fewer": "Is it the number of directions? Seven ninths of them against all",
    "random": "Is any direction enough? Random directions against real ones",
}
"""What is asked, by the baseline, variant or control that answers it."""


def pairs(arms: Sequence[Arm]) -> list[tuple[str, str, str]]:
    """Return (question, reference arm, other arm) for every comparison that the arms allow."""
    named, found = {arm.name for arm in arms}, []
    for arm in arms:
        reference, question = _reference(arm)
        if reference is not None and reference.name in named:
            found.append((question, reference.name, arm.name))
    for arm in arms:
        random = Arm("unmatched", RANDOM[METHODS[arm.method].several])
        if arm.variant == PLAIN and arm.baseline == "unmatched" and not METHODS[arm.method].control and random.name in named:
            found.append(("random", arm.name, random.name))
    return found


def _reference(arm: Arm) -> tuple[Arm | None, str]:
    if arm.variant != PLAIN:
        return arm.plain, arm.variant
    if arm.baseline != "unmatched" and not METHODS[arm.method].control:
        return Arm("unmatched", arm.method), arm.baseline
    return None, ""


def verdicts(
    tests: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str, str]], results: Mapping[str, Any], same: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return an answer to every question that was tested, for cells anywhere and for one layer: counts, and a sentence a comparison.

    `same` says which arms make an earlier one's edit: these are not tested against it, but named.
    """
    found = {(row["place"], row["measure"], row["a"], row["b"]): row for row in tests}
    answers = []
    for order, (question, title) in enumerate(QUESTIONS.items()):
        compared = [(a, b) for q, a, b in asked if q == question]
        told = [(a, b) for a, b in compared if not one_edit(a, b, same)]
        alike = [f"{b} is the same edit as {a}." for a, b in compared if one_edit(a, b, same)]
        for place in ("any", "single") if compared else ():
            refusals, kl = ([found[place, measure, a, b] for a, b in told] for measure in ("refusal_rate", "kl_tokens"))
            sentences = [_sentence(r, k, results) for r, k in zip(refusals, kl, strict=True)]
            asked_here = {"order": order, "question": question, "title": title, "place": place}
            answers.append({**asked_here, **_count(refusals, kl, len(alike)), "sentences": [*sentences, *alike]})
    return answers


def _count(refusals: Sequence[Mapping[str, Any]], kl: Sequence[Mapping[str, Any]], same: int) -> dict[str, Any]:
    (more, less), (drift_more, drift_less) = _split(refusals), _split(kl)
    n = len(refusals)
    told = (
        f"of {n} comparisons, {more} leave more refusals, {less} fewer, {n - more - less} are not told apart; "
        f"{drift_more} drift more, {drift_less} less, {n - drift_more - drift_less} are not told apart"
    )
    parts = [told] if n else []
    parts += [f"{same} {'more ' if n else ''}{'is' if same == 1 else 'are'} the same edit under another name"] if same else []
    return {
        "n": n,
        "same": same,
        "more": more,
        "less": less,
        "drift_more": drift_more,
        "drift_less": drift_less,
        "answer": "; ".join(parts),
    }


def _split(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return in how many comparisons the second arm has more of the measure, and less."""
    more = sum(differs(row) and row["difference"]["value"] < 0 for row in rows)
    return more, sum(differs(row) and row["difference"]["value"] > 0 for row in rows)


def differs(row: Mapping[str, Any]) -> bool:
    """Return whether a test tells its two arms apart after Holm's correction."""
    return row["p_holm"] < ALPHA


def _sentence(refusals: Mapping[str, Any], kl: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    a, b, place = refusals["a"], refusals["b"], refusals["place"]
    rates = {arm: sum(results[arm][place]["refused"]) / len(results[arm][place]["refused"]) for arm in (a, b)}
    drifts = {arm: sum(results[arm][place]["kl"]) / len(results[arm][place]["kl"]) for arm in (a, b)}
    return (
        f"{b} leaves {rates[b]:.1%} of refusals, {a} {rates[a]:.1%} (n {refusals['n']}, {_p(refusals)}): {_word(refusals, 'fewer')}; "
        f"KL {drifts[b]:.3g} against {drifts[a]:.3g} nats a token (n {kl['n']}, {_p(kl)}): {_word(kl, 'less')}."
    )


def _p(row: Mapping[str, Any]) -> str:
    return "p < 0.001" if row["p_holm"] < 0.001 else f"p {row['p_holm']:.3f}"


def _word(row: Mapping[str, Any], less: str) -> str:
    if not differs(row):
        return "not told apart"
    return "more" if row["difference"]["value"] < 0 else less


def protocol_verdict(arm: str, cells: Sequence[Mapping[str, Any]], *, base: int, panel: int) -> dict[str, Any]:
    """Return what the paper's protocol says of an arm: functional (R below the base's anywhere), successful (R = 0), and where."""
    single = [c for c in cells if c["kind"] == "single"]
    least = min((c["r"] for c in single), default=base)
    return {
        "arm": arm,
        "functional": any(c["r"] < base for c in single),
        "successful": any(c["r"] == 0 for c in single),
        "functional_anywhere": any(c["r"] < base for c in cells),
        "successful_anywhere": any(c["r"] == 0 for c in cells),
        "least": least,
        "base": base,
        "panel": panel,
        "layers_at_zero": sorted({c["layers"][0] for c in single if c["r"] == 0}),
    }


def described(arm: Arm) -> dict[str, Any]:
    """Return what an arm is, in words."""
    variant = "" if arm.variant == PLAIN else VARIANTS[arm.variant].label
    method = METHODS[arm.method]
    return {
        "baseline": arm.baseline,
        "method": arm.method,
        "variant": arm.variant,
        "label": "; ".join(filter(None, (arm.baseline, method.label, variant))),
        "control": arm.control,
    }
