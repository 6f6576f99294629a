"""A contrast run becomes one self-contained HTML file."""

from pathlib import Path

from resect.artifacts import write_text
from resect.report import contrast_charts, contrast_tables
from resect.report.contrast_paper import MODEL
from resect.report.contrast_read import ContrastRun, read_contrast
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
        "Signal, noise and topic by layer",
        "Left: length of the difference of means over its standard error; below about 3 a direction is mostly noise. Right: the share of "
        "its squared length inside the span of the topic means.",
        contrast_charts.signal,
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


def build_contrast_report(run: Path) -> Path:
    """Return the path of `report.html`, written into the run folder from `contrast.json`; the same folder gives the same bytes.

    Raises:
        UserError: if the folder is not a finished contrast run, or a file in it cannot be read.
    """
    path = run / "report.html"
    write_text(path, render_contrast(read_contrast(run)))
    return path


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
    found = {entry["question"]: entry for entry in run.document["verdicts"]}
    asked = found.get("matched") or found.get("paired")
    if asked is None:
        return "Matched and unmatched contrast were not both run, so the paper's question is not asked here.", "mixed"
    tested, more, less = asked["n"], asked["more"], asked["less"]
    if not more and not less:
        return f"Topic-matched contrast cannot be told from unmatched contrast in any of {tested} methods (refusals left on test).", "mixed"
    parts = [f"removes fewer refusals than unmatched contrast in {more}"] if more else []
    parts += [f"removes more in {less}"] if less else []
    return (
        f"Topic-matched contrast {' and '.join(parts)} of {tested} methods (refusals left on test, p < 0.05 after Holm).",
        "bad" if more else "good",
    )


def notes(run: ContrastRun) -> list[str]:
    """Return every reason to distrust the headline that the data themselves give."""
    found, prompts, protocol = [], run.part("prompts"), run.part("protocol")
    similarity = prompts.get("similarity")
    if similarity and similarity["within"] <= similarity["shuffled"]:
        found.append("Matched prompts are no more like their harmful partners than like others (word overlap): this set is hardly matched.")
    audit = protocol["audit"]
    if audit["right"] < audit["read"]:
        wrong = audit["read"] - audit["right"]
        found.append(f"Of {audit['read']} cells that the screen spared and that were read all the same, {wrong} had another R.")
    if protocol["base"] < protocol["panel"]:
        found.append(f"The base model itself refuses only {protocol['base']} of the {protocol['panel']} prompts of the panel.")
    infeasible = [arm for arm in run.plain if not run.part("arms")[arm]["chosen"]["feasible"]]
    if infeasible:
        found.append(f"No cell worked on validation for {', '.join(infeasible)}; the nearest one was scored.")
    n = run.part("evaluation")["base"]["refusal_rate"]["n"]
    if n < 100:
        found.append(f"Only {n} harmful test prompts: differences below about {percent(2 / n**0.5)} cannot be seen.")
    if not prompts.get("paired"):
        found.append("Prompts carry no pair ids, so nothing was matched per pair.")
    return found
