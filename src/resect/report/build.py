"""A run folder becomes one self-contained HTML file that opens offline, in light and dark, on a desk and on a phone."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from resect import __version__
from resect.artifacts import write_text
from resect.report import charts_layers, proof, provenance, sentences, tables
from resect.report.figures import FIGURES, FigureSpec
from resect.report.read import RunFolder, read_run
from resect.report.svg import render
from resect.report.theme import BINS, css_variables
from resect.report.values import finite, number


@dataclass(frozen=True)
class Figure:
    """A drawn figure with its caption, or the sentence that says why there is none."""

    caption: str
    wide: Markup | None
    narrow: Markup | None
    missing: str


def build_report(run: Path) -> Path:
    """Return the path of `report.html`, written into the run folder from the files that are there.

    The page is a function of the run folder alone: the same folder gives the same bytes. Times stay in `timings.json`.

    Raises:
        UserError: if the folder is not a finished run, or a file in it cannot be read.
    """
    path = run / "report.html"
    write_text(path, render_page(read_run(run)))
    return path


def render_page(run: RunFolder) -> str:
    """Return the whole page as text."""
    environment = Environment(
        loader=PackageLoader("resect", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = css_variables() + "\n" + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    page = environment.get_template("page.html.j2").render(
        run=run,
        version=__version__,
        style=Markup(style),
        verdict=sentences.verdict(run),
        forecast=sentences.forecast(run),
        figures={spec.name: _figure(run, spec) for spec in FIGURES},
        heat={when: _heat(run, when) for when in ("before", "after")},
        limit=charts_layers.cosine_limit(run),
        bins=BINS,
        tables=tables,
        provenance=provenance,
        proof=proof,
        broken=_broken,
        number=lambda value: number(finite(value)),
        has_text=any("text" in row or "prompt_text" in row for row in run.samples),
    )
    # A model can emit half of a surrogate pair, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def _broken(name: str) -> Markup:
    """Return a name, escaped, that may break after its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _figure(run: RunFolder, spec: FigureSpec) -> Figure:
    drawn = {size: spec.draw(run, wide=size == "wide") for size in ("wide", "narrow")}
    parts = {
        size: None if chart is None else render(chart, label=spec.title, prefix=f"{spec.name}-{size}") for size, chart in drawn.items()
    }
    return Figure(spec.caption, parts["wide"], parts["narrow"], spec.missing)


def _heat(run: RunFolder, when: str) -> Markup | None:
    chart = charts_layers.heat_map(run, when=when)
    return (
        None
        if chart is None
        else render(chart, label=f"Cosine of the direction with every atom by layer, {when} cleaning", prefix=f"heat-{when}", shrink=0.8)
    )
