"""The page of a contrast run: one self-contained HTML file."""

from collections.abc import Mapping
from typing import Any

from resect.report import contrast_charts, contrast_errors, contrast_tables
from resect.report.contrast_notes import notes
from resect.report.contrast_paper import MODEL
from resect.report.contrast_read import ContrastRun
from resect.report.page import figure, fill
from resect.report.theme import BINS
from resect.report.values import percent

_NONE = "This was not measured in this run."
FIGURES = (
    (
        "norms",
        "Norm and cosine by layer",
        "How long each baseline's difference of means is, and how far it points where the unmatched one does. A norm matters to an edit "
        "only where vectors are not normalised.",
        contrast_charts.norms,
    ),
    (
        "signal",
        "Error and topic by layer",
        "Left: the angle within which the direction of endless prompts lies, by bootstrap; near 90 degrees it is noise. Right: the share "
        "of its squared length inside the span of the topic means.",
        contrast_charts.signal,
    ),
    (
        "halves",
        "Halves of the prompts by layer",
        "Left: the cosine between the directions of two random halves of the prompts, mean and 95 % of the halvings; right: the length of "
        "the difference without noise, by the length of its error.",
        contrast_charts.halves,
    ),
    (
        "shares",
        "Dose-response: share of on-topic prompts",
        "Left: refusals left on test at the cell that validation chose, with 95 % intervals; right: what it costs. Difference of means, "
        "normalised; 0 is the unmatched baseline, 1 the matched one.",
        contrast_charts.share_doses,
    ),
    (
        "sizes",
        "Dose-response: number of prompts",
        "The same against the number of harmful prompts that the directions are made from, with as many benign ones.",
        contrast_charts.size_doses,
    ),
)


def render_contrast(run: ContrastRun) -> str:
    """Return the whole page as text."""
    drawn = {
        name: figure({"wide": draw(run, wide=True), "narrow": draw(run, wide=False)}, name=name, title=title, caption=text, missing=_NONE)
        for name, title, text, draw in FIGURES
    }
    return fill(
        "contrast.html.j2",
        run=run,
        tables=contrast_tables,
        errors=contrast_errors,
        figures=drawn,
        titles={name: title for name, title, _, _ in FIGURES},
        bins=list(range(BINS // 2, BINS)),
        headline=headline(run),
        notes=notes(run),
        percent=percent,
        paper_model=MODEL,
    )


def headline(run: ContrastRun) -> tuple[str, str]:
    """Return the answer to the paper's question as a sentence, computed from the tests, and its tone."""
    found = {(entry["question"], entry["place"]): entry for entry in run.document["verdicts"]}
    asked = [(place, found.get(("matched", place)) or found.get(("paired", place))) for place in ("single", "any")]
    parts, ways = [], set[str]()
    for place, entry in asked:
        if entry is not None:
            ways |= {name for name in ("more", "less") if entry[name]}
            parts.append(f"{'editing one layer' if place == 'single' else 'editing where it is best'}, {_outcome(entry)}")
    if not parts:
        return "Matched and unmatched contrast were not both run, so the paper's question is not asked here.", "mixed"
    sentence = f"Topic-matched against unmatched contrast: {'; '.join(parts)} (refusals left on test, p < 0.05 after Holm)."
    return sentence, {frozenset({"more"}): "bad", frozenset({"less"}): "good"}.get(frozenset(ways), "mixed")


def _outcome(entry: Mapping[str, Any]) -> str:
    if not entry["n"]:
        return "both are one edit"
    if not entry["more"] and not entry["less"]:
        return f"not told apart in any of {entry['n']} methods"
    parts = [f"it removes fewer refusals in {entry['more']}"] if entry["more"] else []
    parts += [f"{'' if parts else 'it removes '}more in {entry['less']}"] if entry["less"] else []
    return f"{' and '.join(parts)} of {entry['n']} methods"
