"""The page of an SRA run: one self-contained HTML file that opens offline, in light and dark, on a desk and on a phone."""

from markupsafe import Markup

from resect.report import charts_layers, proof, provenance, sentences, tables
from resect.report.figures import FIGURES, FigureSpec
from resect.report.page import Figure, figure, fill
from resect.report.read import RunFolder
from resect.report.svg import render
from resect.report.theme import BINS
from resect.report.values import finite, number


def render_sra(run: RunFolder) -> str:
    """Return the whole page as text, a function of the run folder alone. Times stay in `timings.json`."""
    return fill(
        "page.html.j2",
        run=run,
        verdict=sentences.verdict(run),
        forecast=sentences.forecast(run),
        figures={spec.name: _figure(run, spec) for spec in FIGURES},
        heat={when: _heat(run, when) for when in ("before", "after")},
        limit=charts_layers.cosine_limit(run),
        bins=BINS,
        tables=tables,
        provenance=provenance,
        proof=proof,
        number=lambda value: number(finite(value)),
        has_text=any("text" in row or "prompt_text" in row for row in run.samples),
    )


def _figure(run: RunFolder, spec: FigureSpec) -> Figure:
    drawn = {size: spec.draw(run, wide=size == "wide") for size in ("wide", "narrow")}
    return figure(drawn, name=spec.name, title=spec.title, caption=spec.caption, missing=spec.missing)


def _heat(run: RunFolder, when: str) -> Markup | None:
    chart = charts_layers.heat_map(run, when=when)
    return (
        None
        if chart is None
        else render(chart, label=f"Cosine of the direction with every atom by layer, {when} cleaning", prefix=f"heat-{when}", shrink=0.8)
    )
