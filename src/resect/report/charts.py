"""The charts that compare arms: refusal against drift, verdicts. One function a chart; None where there is no data."""

import math
from typing import Any

import altair as alt

from resect.report.read import RunFolder
from resect.report.theme import PALETTE, VERDICTS, arm_styles
from resect.report.values import Measure, finite, hover, number, percent, read_measure

Chart = Any
WIDE, NARROW = 900, 342
_INK, _MUTED, _AXIS, _CARD = (PALETTE[name][0] for name in ("ink", "muted", "axis", "card"))


class _Rows(alt.InlineData):
    """Rows that all copies of a chart share: altair copies a chart at every step, and with its rows that was a third of a report's time."""

    def __deepcopy__(self, _memo: object) -> "_Rows":
        return self


def data(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Return rows as chart data that is written into the chart itself."""
    return _Rows(values=rows)


# ---- refusal against KL ---------------------------------------------------------------------------------------------


def _chosen(run: RunFolder) -> list[dict[str, Any]]:
    rows = []
    for arm in run.arms:
        refusal, drift = run.measure(arm, "refusal_rate"), run.measure(arm, "kl_first_token")
        if refusal and drift:
            tip = f"{hover(f'{arm}, refusals', refusal, measure='refusal_rate')}; {hover('KL', drift, measure='kl_first_token')}"
            rows.append(_ends("y", refusal) | _ends("x", drift) | {"arm": arm, "tip": tip})
    return rows


def _ends(axis: str, measured: Measure) -> dict[str, float]:
    low = measured.value if measured.low is None else measured.low
    high = measured.value if measured.high is None else measured.high
    return {axis: measured.value, f"{axis}low": low, f"{axis}high": high}


def _curve_rows(run: RunFolder) -> list[dict[str, Any]]:
    rows = []
    for arm, points in run.by_arm("curves").items():
        for point in sorted(points, key=lambda each: each["strength"]):
            refusal, drift = read_measure(point.get("refusal_rate")), read_measure(point.get("kl_first_token"))
            if refusal and drift:
                tip = f"{arm} at strength {number(point['strength'])}: {percent(refusal.value)} refusals at KL {number(drift.value)} nats"
                rows.append({"arm": arm, "x": drift.value, "y": refusal.value, "order": point["strength"], "tip": tip})
    return rows


def drift_floor(values: list[float]) -> float | None:
    """Return the left edge of the log axis: a power of ten under the smallest positive drift, at most six decades under the largest."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    return 10.0 ** max(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) - 6)


def flag_rows(starts: list[float], widths: list[float]) -> list[int]:
    """Return a row for each flag (text of a width from a pole at `starts` on), so that no text covers a text or a pole.

    A flag hangs below every flag whose pole stands inside its own text, so taken from the far end each pole stays free.
    """
    rows = [0] * len(starts)
    for i in sorted(range(len(starts)), key=lambda each: (-starts[each], -each)):
        inside = [rows[j] for j in range(len(starts)) if j != i and (starts[j], j) > (starts[i], i) and starts[j] < starts[i] + widths[i]]
        rows[i] = 1 + max(inside) if inside else 0
    return rows


def _flag_width(point: dict[str, Any]) -> float:
    return len(point["arm"]) * 6.2 + 14


def _flags(points: list[dict[str, Any]], *, edges: tuple[float, float], width: int, height: int) -> tuple[list[dict[str, Any]], float]:
    low, high = (math.log10(edge) for edge in edges)
    # Flags fly to the left, where there is room: arms that refuse little have the larger drift.
    starts = [(high - math.log10(point["x"])) / (high - low) * width for point in points]
    rows = flag_rows(starts, [_flag_width(point) for point in points])
    step = 17 / height
    flags = [point | {"flag": -step * (row + 1.1)} for point, row in zip(points, rows, strict=True)]
    return flags, -step * (max(rows, default=0) + 1.8)


def tradeoff(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return refusal rate (fraction) against first-token KL (nats, log axis) for all arms, with intervals and strength curves."""
    points, curves = _chosen(run), _curve_rows(run)
    floor = drift_floor([row["x"] for row in points + curves])
    if floor is None:
        return None
    for row in points + curves:
        row |= {key: max(row[key], floor) for key in ("x", "xlow", "xhigh") if key in row}
    top = 10 ** (math.log10(max([row["x"] for row in curves] + [row["xhigh"] for row in points])) + 0.06)
    width, height = (WIDE - 70, 350) if wide else (NARROW - 62, 300)
    flagged = [point for point in points if point["arm"] != "base"]
    flags, bottom = _flags(flagged, edges=(floor, top), width=width, height=height)
    flags += [point | {"flag": None} for point in points if point["arm"] == "base"]
    return _draw_tradeoff(run, curves, flags, edges=(floor, top), size=(width, height, bottom))


def _draw_tradeoff(
    run: RunFolder, curves: list[dict[str, Any]], flags: list[dict[str, Any]], *, edges: tuple[float, float], size: tuple[int, int, float]
) -> Chart:
    width, height, bottom = size
    floor = edges[0]
    ticks = [10.0**k for k in range(round(math.log10(floor)), math.floor(math.log10(edges[1])) + 1)]
    labels = f"datum.value <= {floor * 1.01} ? '≤ ' + format(datum.value, '~g') : format(datum.value, '~g')"
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", domain=list(edges), nice=False),
        axis=alt.Axis(
            values=ticks,
            labelExpr=labels,
            grid=True,
            title="KL of the first answer token from the base model, nats (log scale)"
            if width > 500
            else "first-token KL, nats (log scale)",
        ),
    )
    axis = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1], format="%", title="harmful prompts refused", grid=True, domain=False, ticks=False)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[bottom, 1.06], nice=False), axis=axis)
    styles = arm_styles(run.arms, run.controls)
    colour = alt.Color("arm:N", scale=alt.Scale(domain=run.arms, range=[styles[arm].colour for arm in run.arms]), legend=None)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=run.arms, range=[styles[arm].shape for arm in run.arms]), legend=None)
    layers: list[Any] = []
    for arm in dict.fromkeys(row["arm"] for row in curves):
        base = alt.Chart(data([row for row in curves if row["arm"] == arm])).encode(x=x, y=y, color=colour)
        dash = list(styles[arm].dash) if arm in styles else [1, 0]
        layers += [base.mark_line(strokeWidth=1.4, opacity=0.75, strokeDash=dash, aria=False).encode(order=alt.Order("order:Q"))]
        layers += [base.mark_circle(size=14, opacity=0.75).encode(description=alt.Description("tip:N"))]
    chosen = alt.Chart(data(flags)).encode(x=x, color=colour)
    poles = alt.Chart(data([flag for flag in flags if flag["flag"] is not None])).encode(x=x, color=colour)
    bare = alt.Chart(data([flag for flag in flags if flag["flag"] is None])).encode(x=x, y=y, color=colour, text=alt.Text("arm:N"))
    layers += [
        poles.mark_rule(strokeWidth=0.9, opacity=0.55, aria=False).encode(y=y, y2=alt.Y2("flag:Q")),
        chosen.mark_rule(strokeWidth=1.8, aria=False).encode(y=alt.Y("ylow:Q"), y2=alt.Y2("yhigh:Q")),
        chosen.mark_rule(strokeWidth=1.8, aria=False).encode(x=alt.X("xlow:Q"), x2=alt.X2("xhigh:Q"), y=alt.Y("y:Q")),
        chosen.mark_point(filled=True, size=110, opacity=1, stroke=_CARD, strokeWidth=1).encode(
            y=alt.Y("y:Q"), shape=shape, description=alt.Description("tip:N")
        ),
        poles.mark_text(align="right", dx=-4, dy=-1, fontSize=12, aria=False).encode(y=alt.Y("flag:Q"), text=alt.Text("arm:N")),
        bare.mark_text(align="left", dx=9, dy=-9, fontSize=12, aria=False),
    ]
    return alt.layer(*layers).properties(width=width, height=round(height * (1.06 - bottom)))


# ---- verdicts ------------------------------------------------------------------------------------------------------


def verdict_bars(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return the share of each verdict on harmful prompts as stacked bars, one for each arm."""
    rows = []
    for arm, counts in run.by_arm("verdicts").items():
        total = sum(counts.values())
        start = 0.0
        for verdict in VERDICTS:
            share = (finite(counts.get(verdict)) or 0) / total if total else 0
            tip = f"{arm}: {counts.get(verdict, 0)} of {total} {verdict} ({percent(share)})"
            rows += [{"arm": arm, "verdict": verdict, "start": start, "end": start + share, "tip": tip}] if share else []
            start += share
    if not rows:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    used = [verdict for verdict in VERDICTS if any(row["verdict"] == verdict for row in rows)]
    legend = alt.Legend(orient="top", title=None, columns=6 if wide else 3, symbolType="square", symbolSize=110)
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=used, range=[PALETTE[verdict][0] for verdict in used]), legend=legend)
    y = alt.Y("arm:N", sort=arms, title=None, axis=alt.Axis(labelLimit=170, ticks=False, domain=False, labelColor=_INK))
    x = alt.X("start:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, title="share of harmful test prompts"))
    bars = (
        alt.Chart(data(rows))
        .mark_bar(stroke=_CARD, strokeWidth=1)
        .encode(y=y, x=x, x2=alt.X2("end:Q"), color=colour, description=alt.Description("tip:N"))
    )
    return bars.properties(width=WIDE - 180 if wide else NARROW - 160, height=alt.Step(24))
