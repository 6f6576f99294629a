"""An altair chart as inline SVG: colours become CSS variables, descriptions become hover titles, nothing refers outside."""

import re
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup, escape

from resect.report.theme import PALETTE, variables

_VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_INK, _MUTED, _AXIS, _GRID = (PALETTE[name][0] for name in ("ink", "muted", "axis", "grid"))
_EMPTY = re.compile(r'<path class="(?:background|foreground)"[^>]* d="(?:M0,0h0v0h0Z)?"[^>]*/>')
_MARK = re.compile(r'<(\w+) aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="[^"]*"([^>]*)/>')
_ARIA = re.compile(
    r' (?:class|role|aria-[a-z]+|pointer-events|xmlns(?::xlink)?|stroke-miterlimit|font-family|opacity)="(?:1|[^"]*[^0-9."][^"]*)"'
)
_GEOMETRY = re.compile(r' (?:d|transform|x|y|x2|y2|width|height)="[^"]*"')
_COLOUR = re.compile(r'"(#[0-9a-f]{6})"')


def configure(chart: Any) -> Any:
    """Return the chart with the report's axes, legends and type."""
    axis = {
        "labelColor": _MUTED,
        "titleColor": _MUTED,
        "domainColor": _AXIS,
        "tickColor": _AXIS,
        "gridColor": _GRID,
        "labelFontSize": 11.5,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 5,
        "tickSize": 4,
    }
    legend = {
        "labelColor": _INK,
        "titleColor": _MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
    }
    header = {"labelColor": _INK, "titleColor": _MUTED, "labelFontSize": 12, "titleFontSize": 12, "labelFontWeight": "bold"}
    return chart.configure(
        background="transparent", font="Liberation Sans", axis=axis, legend=legend, header=header, view={"stroke": None}, padding=4
    ).configure_title(color=_INK, fontSize=12.5, fontWeight="bold", anchor="start", offset=8)


def render(chart: Any, *, label: str, prefix: str, shrink: float = 0.0) -> Markup:
    """Return the chart as SVG to put inside the page.

    Args:
        chart: an altair chart, without configuration.
        label: what the figure shows, for readers who do not see it.
        prefix: unique on the page; put before every id inside the SVG.
        shrink: the least share of its own width that the figure may shrink to on a narrow screen; beyond that its box scrolls.
    """
    # Tests check that charts are valid; checking them again on every page only takes time.
    text = vl_convert.vegalite_to_svg(configure(chart).to_dict(validate=False), vl_version=_VERSION)
    text = _MARK.sub(r"<\1\3><title>\2</title></\1>", _EMPTY.sub("", text))
    text = _GEOMETRY.sub(lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), _ARIA.sub("", text))
    text = re.sub(r'( id="|url\(#)', rf"\g<1>{prefix}-", text)
    names = {colour: name for name, colour in variables("light").items()}
    text = _COLOUR.sub(lambda match: f'"var(--{names[match[1]]})"' if match[1] in names else match[0], text)
    width = float(re.findall(r'width="([0-9.]+)"', text)[0])
    style = f' style="min-width:{width * shrink:.0f}px"' if shrink else ""
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"{style}', 1))
