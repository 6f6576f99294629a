"""The charts with one row for each capability or topic and one mark for each arm. None where there is no data."""

import math
from typing import Any

import altair as alt

from resect.report.charts import NARROW, WIDE, Chart, data, drift_floor
from resect.report.read import RunFolder
from resect.report.theme import PALETTE, arm_styles
from resect.report.values import hover, number, read_measure

_INK, _AXIS = PALETTE["ink"][0], PALETTE["axis"][0]


def _arm_scales(run: RunFolder, arms: list[str], *, wide: bool) -> dict[str, Any]:
    """Return colour and shape encodings with one shared legend over the chart."""
    styles = arm_styles(run.arms, run.controls)
    legend = alt.Legend(orient="top", title=None, columns=5 if wide else 2, symbolSize=70, symbolStrokeWidth=0, columnPadding=24)
    return {
        "color": alt.Color("arm:N", scale=alt.Scale(domain=arms, range=[styles[arm].colour for arm in arms]), legend=legend, sort=None),
        "shape": alt.Shape("arm:N", scale=alt.Scale(domain=arms, range=[styles[arm].shape for arm in arms]), legend=legend, sort=None),
    }


def _dots(run: RunFolder, rows: list[dict[str, Any]], *, x: alt.X, wide: bool, zero: float | None) -> Chart:
    arms = [arm for arm in run.arms if any(row["arm"] == arm for row in rows)]
    names = list(dict.fromkeys(row["row"] for row in rows))
    height = len(names) * (len(arms) * 9 + 16)
    longest = max(map(len, names))
    width = (WIDE if wide else NARROW) - 30 - round(6.4 * min(longest, 22))
    y = alt.Y(
        "row:N",
        sort=names,
        title=None,
        axis=alt.Axis(labelLimit=150, ticks=False, domain=False, labelColor=_INK),
        scale=alt.Scale(paddingInner=0.18),
    )
    base = alt.Chart(data(rows)).encode(y=y, yOffset=alt.YOffset("arm:N", sort=arms), x=x)
    bands = (
        alt.Chart(data([{"row": name} for name in names[::2]]))
        .mark_bar(color=PALETTE["page"][0], opacity=0.7, aria=False)
        .encode(y=alt.Y("row:N", sort=names))
    )
    scales = _arm_scales(run, arms, wide=wide)
    marks = [
        bands,
        base.mark_rule(strokeWidth=1.6, opacity=0.8, aria=False).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), color=scales["color"]),
    ]
    if zero is not None:
        marks.insert(1, alt.Chart(data([{"zero": zero}])).mark_rule(color=_AXIS, aria=False).encode(x=alt.X("zero:Q")))
    marks.append(base.mark_point(filled=True, size=55, opacity=1).encode(**scales, description=alt.Description("tip:N")))
    return alt.layer(*marks).properties(width=width, height=height)


def perplexity_change(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return the change of perplexity against base in percent, a row for each capability, a mark for each arm."""
    rows = []
    for capability in run.capabilities():
        base = run.perplexity("base", capability)
        for arm in run.arms:
            edited = run.perplexity(arm, capability)
            if arm != "base" and base and edited and base.value > 0:
                change = (edited.value / base.value - 1) * 100
                tip = f"{arm}, {capability}: {number(base.value)} to {number(edited.value)} per token ({change:+.1f} %)"
                rows.append({"row": capability, "arm": arm, "x": change, "low": min(0, change), "high": max(0, change), "tip": tip})
    if not rows:
        return None
    ticks = sorted({sign * size for sign in (-1, 1) for size in ((0, 1, 3, 10, 30, 100, 300, 1000) if wide else (0, 1, 10, 100, 1000))})
    expr = "(datum.value > 0 ? '+' : '') + replace(format(datum.value, '~r'), '-', '−') + ' %'"
    axis = alt.Axis(
        values=ticks,
        labelExpr=expr,
        title="change of perplexity per token against base (symmetric log scale)" if wide else "perplexity against base",
    )
    domain = [min(-0.5, 1.2 * min(row["x"] for row in rows)), max(0.5, 1.2 * max(row["x"] for row in rows))]
    scale = alt.Scale(type="symlog", constant=1, domain=domain, nice=False)
    return _dots(run, rows, x=alt.X("x:Q", scale=scale, axis=axis), wide=wide, zero=0.0)


def topic_drift(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return first-token KL (nats, log axis) by topic and arm, with intervals."""
    found = [
        (arm, topic, m) for arm, topics in run.by_arm("drift_by_topic").items() for topic, raw in topics.items() if (m := read_measure(raw))
    ]
    floor = drift_floor([measured.value for _, _, measured in found])
    if floor is None:
        return None
    rows = []
    for arm, topic, measured in sorted(found, key=lambda each: each[1]):
        tip = hover(f"{arm}, {topic}, KL", measured, measure="kl_first_token")
        ends = {"low": measured.low or 0, "high": measured.high or measured.value, "x": measured.value}
        rows.append({"row": topic, "arm": arm, "tip": tip} | {key: max(value, floor) for key, value in ends.items()})
    title = "KL of the first answer token from the base model, nats (log scale)" if wide else "first-token KL, nats (log scale)"
    top = max(row["high"] for row in rows) * 1.1
    ticks = [10.0**k for k in range(round(math.log10(floor)), math.floor(math.log10(top)) + 1)]
    x = alt.X("x:Q", scale=alt.Scale(type="log", domain=[floor, top], nice=False), axis=alt.Axis(values=ticks, format="~g", title=title))
    return _dots(run, rows, x=x, wide=wide, zero=None)
