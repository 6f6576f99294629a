"""The charts of the contrast report: geometry by layer, capture, dose-response. One function a chart; None where there is no data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from resect.report.charts import Chart, data
from resect.report.charts_layers import heading, panel_width, side_by_side
from resect.report.contrast_read import ContrastRun
from resect.report.theme import PALETTE
from resect.report.values import finite, hover, number, read_measure

COLOURS = {
    "unmatched": "arm-standard",
    "matched": "arm-sra",
    "paired": "arm-projected",
    "other_topics": "arm-whitened",
    "dealt": "arm-combined",
}
_SPARE = "arm-base"


def norms(run: ContrastRun, *, wide: bool) -> Chart | None:
    """Return the norm of each baseline's difference of means and its cosine with the unmatched one, by layer."""
    part = run.part("geometry")
    panels = [(part.get("norms") or {}, "norm of the difference of means"), (part.get("cosines") or {}, "cosine with the unmatched one")]
    return _by_layer(panels, wide=wide)


def signal(run: ContrastRun, *, wide: bool) -> Chart | None:
    """Return the angle of error and the topic part of each baseline's difference of means, by layer."""
    return _by_layer([(run.errors("cone"), "95 % cone, degrees"), (run.part("geometry").get("topic_part") or {}, "topic part")], wide=wide)


def halves(run: ContrastRun, *, wide: bool) -> Chart | None:
    """Return the cosine between the differences of means of two halves of the prompts, and signal by noise, by layer."""
    return _by_layer([(run.errors("split_half"), "split-half cosine"), (run.errors("signal_to_noise"), "signal / noise")], wide=wide)


def _by_layer(panels: Sequence[tuple[Mapping[str, Any], str]], *, wide: bool) -> Chart | None:
    shown = [(values, title) for values, title in panels if values]
    charts = [
        _lines(_layer_rows(values), x=_layers(values), title=title, width=panel_width(len(shown), wide=wide)) for values, title in shown
    ]
    return side_by_side(charts, wide=wide) if charts else None


def _layers(values: Mapping[str, Any]) -> alt.X:
    count = max(len(each["value"] if isinstance(each, Mapping) else each) for each in values.values())
    every = max(1, math.ceil(count / 12))
    return alt.X("x:O", axis=alt.Axis(title="layer", labelAngle=0, values=list(range(0, count, every)), ticks=False))


def _layer_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for every layer and series; a series is a list by layer, or three of them: value, low and high."""
    rows: list[dict[str, Any]] = []
    for name, each in values.items():
        ends = {end: each[end] for end in ("low", "high")} if isinstance(each, Mapping) else {}
        for layer, raw in enumerate(each["value"] if isinstance(each, Mapping) else each):
            if (value := finite(raw)) is not None:
                span = f", {number(ends['low'][layer])} to {number(ends['high'][layer])}" if ends else ""
                tip = f"{name}, layer {layer}: {number(value)}{span}"
                rows.append({"x": layer, "y": value, "series": name, "tip": tip, **{end: row[layer] for end, row in ends.items()}})
    return rows


def _lines(rows: list[dict[str, Any]], *, x: alt.X, title: str, width: int) -> Chart:
    names = list(dict.fromkeys(row["series"] for row in rows))
    colours = [PALETTE[COLOURS.get(name, _SPARE)][0] for name in names]
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3, columns=3)
    colour = alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend)
    y = alt.Y("y:Q", axis=alt.Axis(**heading(title), tickCount=5, domain=False, ticks=False, format="~g"))
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour)
    layers: list[Any] = [base.mark_line(strokeWidth=1.8, aria=False).encode(detail=alt.Detail("series:N"))]
    if any("low" in row for row in rows):
        layers.append(base.mark_rule(strokeWidth=1.4, aria=False).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")))
    layers.append(base.mark_circle(size=40, opacity=1).encode(description=alt.Description("tip:N")))
    return alt.layer(*layers).properties(width=width, height=180)


def share_doses(run: ContrastRun, *, wide: bool) -> Chart | None:
    """Return refusals and KL against the share of on-topic prompts in the baseline."""
    return _doses([d for d in run.document.get("doses") or [] if d["share"] is not None], key="share", title="share on topic", wide=wide)


def size_doses(run: ContrastRun, *, wide: bool) -> Chart | None:
    """Return refusals and KL against the number of harmful prompts, unmatched and matched."""
    return _doses([d for d in run.document.get("doses") or [] if d["share"] is None], key="n", title="harmful prompts", wide=wide)


def _doses(entries: Sequence[Mapping[str, Any]], *, key: str, title: str, wide: bool) -> Chart | None:
    if not entries:
        return None
    x = alt.X("x:O", axis=alt.Axis(title=title, labelAngle=0))
    charts = []
    for measure, heads in (("refusal_rate", "harmful prompts refused"), ("kl_tokens", "KL, nats per token")):
        rows = []
        for entry in entries:
            found = read_measure(entry["test"][measure])
            if found:
                tip = hover(f"{entry['baseline']}, {title} {entry[key]}", found, measure=measure)
                rows.append(
                    {"x": entry[key], "y": found.value, "low": found.low, "high": found.high, "series": entry["baseline"], "tip": tip}
                )
        charts.append(_lines(rows, x=x, title=heads, width=panel_width(2, wide=wide)))
    return side_by_side(charts, wide=wide)
