"""Reasons to distrust a contrast run that its own data give, and everything that was left out of it: one sentence each."""

from collections.abc import Iterator

from resect.report.contrast_read import ContrastRun
from resect.report.values import Json, percent

SMALL_SAMPLE = 100
"""Harmful test prompts below which the report says what differences cannot be seen."""


def notes(run: ContrastRun) -> list[str]:
    """Return every note of a run, those on its prompts first."""
    return [*_on_prompts(run.part("prompts")), *_on_measures(run)]


def _on_prompts(prompts: Json) -> Iterator[str]:
    similarity, used, left = prompts.get("similarity"), prompts["used"], prompts.get("left_out") or {}
    if similarity and similarity["within"] <= similarity["shuffled"]:
        yield (
            f"Matched prompts are no more like their harmful partners than like others (word overlap {similarity['within']:.2f} against "
            f"{similarity['shuffled']:.2f}): this set is hardly matched."
        )
    if not prompts.get("paired"):
        yield "Not every harmful and matched prompt carries a pair id (or pairs were not asked for), so nothing was matched per pair."
    if not used["held_out_pairs"]:
        yield "No harmful test prompt has a matched one, so nothing is held out to be captured."
    for side, n in (left.get("rows") or {}).items():
        yield f"Rows of the {side} file left out as duplicates or blank: {n}."
    if left.get("harmful"):
        yield f"Harmful extraction prompts left out, since no matched prompt that the base answers is left for them: {left['harmful']}."
    if left.get("matched"):
        yield f"Matched extraction prompts left out, so that every baseline rests on equally many benign prompts: {left['matched']}."
    if left.get("categories"):
        yield f"Categories without enough prompts for a mean were left out: {', '.join(left['categories'])}."
    if prompts.get("predicted"):
        yield _predicted(prompts["predicted"])


def _predicted(found: Json) -> str:
    """Return how many categories are guesses, and how often such guesses are right."""
    known = f", and for {found['right']} of {found['known']} matched prompts with a category" if found["known"] else ""
    return (
        f"Categories of {found['matched']} matched and {found['harmful']} harmful prompts were predicted from activations at layer "
        f"{found['layer']}, the best of {found['layers']}: right for {percent(found['accuracy'])} of {found['labelled']} harmful prompts "
        f"left out of their category's mean{known}; the largest category alone is {percent(found['chance'])}."
    )


def _on_measures(run: ContrastRun) -> Iterator[str]:
    protocol, audit = run.part("protocol"), run.part("protocol")["audit"]
    if audit["right"] < audit["read"]:
        wrong = audit["read"] - audit["right"]
        yield f"Of {audit['read']} cells that the screen spared and that were read all the same, {wrong} had another R."
    if protocol["base"] < protocol["panel"]:
        yield f"The base model itself refuses only {protocol['base']} of the {protocol['panel']} prompts of the panel."
    infeasible = [arm for arm in run.plain if not run.part("arms")[arm]["chosen"]["any"]["feasible"]]
    if infeasible:
        yield f"No cell worked on validation for {', '.join(infeasible)}; the nearest one was scored."
    n = run.part("evaluation")["base"]["any"]["refusal_rate"]["n"]
    if n < SMALL_SAMPLE:
        yield f"Only {n} harmful test prompts: differences below about {percent(2 / n**0.5)} cannot be seen."
    for baseline, reason in (run.part("geometry").get("no_errors") or {}).items():
        yield f"The direction of baseline {baseline} has no error bars. {reason}"
