"""The charts over layers and λ: cosine heat maps, strengths, sweep, R². None where there is no data."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from resect.report.charts import NARROW, WIDE, Chart, data
from resect.report.read import RunFolder
from resect.report.theme import BINS, PALETTE, ROLES, arm_styles, diverging
from resect.report.values import finite, hover, number, read_measure, short

_INK, _MUTED, _AXIS = (PALETTE[name][0] for name in ("ink", "muted", "axis"))
_MAIN = PALETTE["arm-sra"][0]


def side_by_side(charts: Sequence[Any], *, wide: bool) -> Any:
    """Return panels beside each other on a wide screen, under each other on a narrow one."""
    return alt.hconcat(*charts, spacing=62, bounds="flush") if wide else alt.vconcat(*charts, spacing=26)


def panel_width(count: int, *, wide: bool) -> int:
    """Return the width of one of `count` panels in pixels, without its axis."""
    return (WIDE - 62 * count) // count if wide else NARROW - 60


# ---- cosine with every atom ----------------------------------------------------------------------------------------


def cosine_limit(run: RunFolder) -> float:
    """Return the end of the shared colour scale: the largest |cosine| before or after, rounded up to a tenth."""
    spectrum = run.part("spectrum")
    rows = [row for key in ("cosine_before", "cosine_after") for row in spectrum.get(key) or []]
    largest = max((abs(value) for row in rows for each in row if (value := finite(each)) is not None), default=0.0)
    return max(0.1, math.ceil(largest * 10 - 1e-9) / 10)


def heat_map(run: RunFolder, *, when: str) -> Chart | None:
    """Return the cosine of the direction with every atom by layer, `when` "before" or "after" cleaning; atoms grouped by role."""
    table, atoms = run.part("spectrum").get(f"cosine_{when}"), run.rows("atoms")
    if not table or not atoms:
        return None
    limit, colours = cosine_limit(run), diverging("light")
    rows = []
    for layer, row in enumerate(table):
        for atom, raw in zip(atoms, row, strict=True):
            cosine = finite(raw)
            if cosine is not None:
                colour = colours[round((cosine / limit + 1) / 2 * (BINS - 1))]
                tip = f"layer {layer}, {atom['name']}: {cosine:+.3f}"
                rows.append({"layer": layer, "atom": atom["name"], "role": atom["role"], "colour": colour, "tip": tip})
    every = max(1, math.ceil(len(table) / 12))
    bottom = alt.Axis(labelAngle=0, values=list(range(0, len(table), every)), ticks=False, domain=False, title="layer")
    sections = []
    present = [role for role in ROLES if any(row["role"] == role for row in rows)]
    for role in present:
        x = alt.X("layer:O", axis=bottom if role == present[-1] else None)
        mine = [row for row in rows if row["role"] == role]
        names = list(dict.fromkeys(row["atom"] for row in mine))
        y = alt.Y(
            "atom:N", sort=names, title=None, axis=alt.Axis(labelLimit=150, minExtent=150, ticks=False, domain=False, labelColor=_INK)
        )
        cells = (
            alt.Chart(data(mine)).mark_rect().encode(x=x, y=y, fill=alt.Fill("colour:N", scale=None), description=alt.Description("tip:N"))
        )
        sections.append(cells.properties(width=min(620, max(250, 10 * len(table))), height=alt.Step(15), title=f"{role}s"))
    return alt.vconcat(*sections, spacing=10)


# ---- strength by layer ---------------------------------------------------------------------------------------------


def strength_by_layer(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return the strength γ by layer as one small chart for each arm, all on the same axes."""
    styles = arm_styles(run.arms, run.controls)
    arms = {
        arm: entry["profile"]
        for arm, entry in run.by_arm("arms").items()
        if entry.get("profile") and arm in styles and any(entry["profile"])
    }
    if not arms:
        return None
    columns = 4 if wide else 2
    top = max(1.0, *(gamma for profile in arms.values() for gamma in profile))
    charts = []
    for index, (arm, profile) in enumerate(arms.items()):
        rows = [{"layer": i, "gamma": gamma, "tip": f"{arm}, layer {i}: γ {number(gamma)}"} for i, gamma in enumerate(profile)]
        first = index % columns == 0
        every = max(1, math.ceil(len(profile) / (7 if wide else 4)))
        x = alt.X("layer:O", axis=alt.Axis(labelAngle=0, values=list(range(0, len(profile), every)), title="layer", ticks=False))
        axis = alt.Axis(
            title="strength γ" if first else None, tickCount=3, domain=False, ticks=False, labels=first, minExtent=30 if first else 0
        )
        y = alt.Y("gamma:Q", scale=alt.Scale(domain=[0, top * 1.05], nice=False), axis=axis)
        bars = alt.Chart(data(rows)).mark_bar(color=styles[arm].colour).encode(x=x, y=y, description=alt.Description("tip:N"))
        one = alt.Chart(data([{"y": 1}])).mark_rule(color=_AXIS, strokeDash=[3, 3], aria=False).encode(y=alt.Y("y:Q"))
        width = (WIDE - 70) // 4 - 22 if wide else (NARROW - 66) // 2 - 10
        charts.append((bars + one).properties(width=width, height=92, title=arm))
    return alt.concat(*charts, columns=columns, spacing=20 if wide else 14)


# ---- λ, R², filter -------------------------------------------------------------------------------------------------


def heading(title: str) -> dict[str, Any]:
    """Return the options that put the title of a vertical axis over the panel, where titles of neighbours stay level."""
    place = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0, "titleY": -20, "titleBaseline": "top"}
    return place | {"title": title, "titleColor": _INK, "titleFontWeight": "bold"}


def _line(rows: list[dict[str, Any]], *, x: alt.X, title: str, width: int, percent_axis: bool = False, colour: str = _MAIN) -> Chart:
    top = max((row.get("high", row["y"]) for row in rows), default=1.0)
    scale = alt.Scale(domain=[0, min(1.0, max(0.05, top * 1.05))]) if percent_axis else alt.Scale(zero=True)
    y = alt.Y(
        "y:Q", scale=scale, axis=alt.Axis(**heading(title), tickCount=4, domain=False, ticks=False, format="%" if percent_axis else "~g")
    )
    base = alt.Chart(data(rows)).encode(x=x, y=y)
    layers = [base.mark_line(strokeWidth=1.8, color=colour, aria=False)]
    if any("low" in row for row in rows):
        layers.append(base.mark_rule(strokeWidth=1.4, color=colour, aria=False).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")))
    layers.append(base.mark_circle(size=40, color=colour, opacity=1).encode(description=alt.Description("tip:N")))
    return alt.layer(*layers).properties(width=width, height=150)


def measured(points: list[Any], *, x: str, measure: str, name: str) -> list[dict[str, Any]]:
    """Return a row for each point that has the measure: place on the x axis, value, interval, tooltip."""
    rows = []
    for point in points:
        found = read_measure(point.get(measure))
        if found:
            low = found.value if found.low is None else found.low
            high = found.value if found.high is None else found.high
            tip = hover(f"{name} {number(point[x])}", found, measure=measure)
            rows.append({"x": short(point[x]), "y": found.value, "low": low, "high": high, "tip": tip})
    return rows


def lambda_sweep(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return refusal (fraction), first-token KL (nats) and cosine with the raw direction against the ridge λ."""
    points = sorted(run.rows("lambda_sweep"), key=lambda each: each["lambda"])
    if not points:
        return None
    x = alt.X("x:N", sort=[short(point["lambda"]) for point in points], axis=alt.Axis(title="λ", labelAngle=-45 if len(points) > 6 else 0))
    cosines = [
        {"x": short(p["lambda"]), "y": value, "tip": f"λ {number(p['lambda'])}: cosine {value:.3f}"}
        for p in points
        if (value := finite(p.get("cosine_with_raw"))) is not None
    ]
    width = panel_width(3, wide=wide)
    refusals = measured(points, x="lambda", measure="refusal_rate", name="λ")
    drifts = measured(points, x="lambda", measure="kl_first_token", name="λ")
    panels = [
        _line(refusals, x=x, title="harmful prompts refused", width=width, percent_axis=True),
        _line(drifts, x=x, title="first-token KL, nats", width=width, colour=PALETTE["arm-standard"][0]),
        _line(cosines, x=x, title="cosine with the raw direction", width=width, colour=PALETTE["arm-projected"][0]),
    ]
    return side_by_side([panel for panel, rows in zip(panels, (refusals, drifts, cosines), strict=True) if rows], wide=wide)


def r_squared(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return R² of the raw direction on the atoms by layer and, where known, the effective number of atoms the ridge removes."""
    spectrum = run.part("spectrum")
    values = [finite(value) for value in spectrum.get("r_squared") or []]
    if not any(value is not None for value in values):
        return None
    filters = [math.fsum(row) for row in spectrum.get("filter") or []]
    every = max(1, math.ceil(len(values) / 12))
    x = alt.X("x:O", axis=alt.Axis(title="layer", labelAngle=0, values=list(range(0, len(values), every)), ticks=False))
    width = panel_width(2 if filters else 1, wide=wide)
    shares = [{"x": i, "y": value, "tip": f"layer {i}: R² {value:.3f}"} for i, value in enumerate(values) if value is not None]
    removed = [{"x": i, "y": value, "tip": f"layer {i}: {value:.2f} atoms"} for i, value in enumerate(filters)]
    panels = [_line(shares, x=x, title="R² of the raw direction on the atoms", width=width)]
    if removed:
        title = "effective number of atoms removed, Σ s²/(s²+λ)" if wide else "effective atoms removed, Σ s²/(s²+λ)"
        panels.append(_line(removed, x=x, title=title, width=width, colour=PALETTE["arm-projected"][0]))
    return side_by_side(panels, wide=wide)
