"""What every page has: the template environment, the style, and figures drawn for wide and narrow screens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from resect import __version__
from resect.report.svg import render
from resect.report.theme import css_variables


@dataclass(frozen=True)
class Figure:
    """A drawn figure with its caption, or the sentence that says why there is none."""

    caption: str
    wide: Markup | None
    narrow: Markup | None
    missing: str


def fill(template: str, **values: Any) -> str:
    """Return a whole page as text: a template of this package, filled; every value is escaped unless it is markup."""
    environment = Environment(
        loader=PackageLoader("resect", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Macros see the globals only.
    environment.globals["broken"] = broken
    style = css_variables() + "\n" + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    page = environment.get_template(template).render(version=__version__, style=Markup(style), **values)
    # A model can emit half of a surrogate pair, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def broken(name: str) -> Markup:
    """Return a name, escaped, that may break after its underscores and slashes."""
    return escape(name).replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>"))


def figure(drawn: Mapping[str, Any], *, name: str, title: str, caption: str, missing: str) -> Figure:
    """Return a figure from its charts, `wide` and `narrow`; a chart that is None was not drawn for want of data."""
    parts = {size: None if chart is None else render(chart, label=title, prefix=f"{name}-{size}") for size, chart in drawn.items()}
    return Figure(caption, parts["wide"], parts["narrow"], missing)
