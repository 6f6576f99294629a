"""The charts over passes and ceilings of recovery. None where there is no data."""

import math
from typing import Any

import altair as alt

from resect.report.charts import NARROW, WIDE, Chart, data
from resect.report.charts_layers import heading, measured, panel_width, side_by_side
from resect.report.read import RunFolder
from resect.report.theme import PALETTE, ROLES
from resect.report.values import percent, short

_INK, _AXIS = PALETTE["ink"][0], PALETTE["axis"][0]


def spread(heights: list[float], *, gap: float) -> list[float]:
    """Return the heights moved apart so that neighbours in sorted order are at least `gap` apart, centred where they were."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []
    placed = list(heights)
    for i in order:
        groups.append([i])
        while True:
            group = groups[-1]
            middle = math.fsum(heights[j] for j in group) / len(group)
            for k, j in enumerate(group):
                placed[j] = middle + (k - (len(group) - 1) / 2) * gap
            if len(groups) < 2 or placed[group[0]] - placed[groups[-2][-1]] >= gap - 1e-12:
                break
            groups[-2:] = [groups[-2] + group]
    return placed


def pass_spectrum(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return the eight largest atom coefficients over the passes, coloured by role and labelled at their last pass."""
    passes = run.rows("passes")
    sizes = {
        name: max(abs(each["coefficients"].get(name, 0.0)) for each in passes) for each in passes for name in each.get("coefficients") or {}
    }
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:8]
    if not names:
        return None
    roles = {atom["name"]: atom["role"] for atom in run.rows("atoms")}
    rows = [
        {"atom": name, "role": roles.get(name, "confound"), "pass": each["pass"], "y": each["coefficients"][name]}
        | {"tip": f"pass {each['pass']}, {name}: {each['coefficients'][name]:+.3g}"}
        for each in passes
        for name in names
        if name in each["coefficients"]
    ]
    width, height = (WIDE - 260, 260) if wide else (NARROW - 192, 260)
    last = list({str(row["atom"]): row for row in rows}.values())
    heights = [float(row["y"]) for row in rows]
    span = (max(heights) - min(heights)) or 1.0
    places = spread([float(row["y"]) for row in last], gap=span * 15 / height)
    labels = [row | {"place": place} for row, place in zip(last, places, strict=True)]
    used = [role for role in ROLES if any(row["role"] == role for row in rows)]
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("role:N", scale=alt.Scale(domain=used, range=[PALETTE[f"role-{role}"][0] for role in used]), legend=legend)
    x = alt.X("pass:O", axis=alt.Axis(title="pass", labelAngle=0), scale=alt.Scale(padding=0.2))
    y = alt.Y(
        "y:Q",
        axis=alt.Axis(title="coefficient of the atom in the raw direction" if wide else "atom coefficient", tickCount=5, domain=False),
    )
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour)
    zero = alt.Chart(data([{"y": 0}])).mark_rule(color=_AXIS, aria=False).encode(y=alt.Y("y:Q"))
    text = (
        alt.Chart(data(labels))
        .mark_text(align="left", dx=10, fontSize=12, aria=False)
        .encode(x=x, y=alt.Y("place:Q"), text=alt.Text("atom:N"), color=colour)
    )
    lines = base.mark_line(strokeWidth=1.8, aria=False).encode(detail=alt.Detail("atom:N"))
    return alt.layer(zero, lines, base.mark_circle(size=45, opacity=1).encode(description=alt.Description("tip:N")), text).properties(
        width=width, height=height
    )


def _ceiling_panel(run: RunFolder, points: list[Any], *, key: str, titles: tuple[str, str], width: int) -> Chart:
    kinds = {"recovery": PALETTE["arm-sra"][0], "refusal_rate": PALETTE["refuse"][0]}
    words = {"recovery": "recovery", "refusal_rate": "refusals"}
    rows = [
        row | {"kind": words[kind]} for kind in kinds for row in measured(points, x=key, measure=kind, name=f"{words[kind]}, {titles[1]}")
    ]
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(words.values()), range=list(kinds.values())), legend=legend)
    x = alt.X("x:N", sort=[short(point[key]) for point in points], axis=alt.Axis(title=titles[1], labelAngle=0))
    y = alt.Y(
        "y:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(**heading(titles[0]), format="%", tickCount=5, domain=False, ticks=False)
    )
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.8, aria=False),
        base.mark_rule(strokeWidth=1.4, aria=False).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
        base.mark_circle(size=45, opacity=1).encode(description=alt.Description("tip:N")),
    ]
    reached = run.measure("sra", "recovery")
    if reached:
        note = alt.Chart(data([{"y": reached.value, "text": f"sra reaches {percent(reached.value)}"}])).encode(y=alt.Y("y:Q"))
        layers += [
            note.mark_rule(strokeDash=[4, 3], color=_INK, aria=False),
            note.mark_text(align="left", x=4, dy=-7, color=_INK, fontSize=11.5, aria=False).encode(text=alt.Text("text:N")),
        ]
    return alt.layer(*layers).properties(width=width, height=200)


def ceilings(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return recovery and refusal (fractions) under the oracle projection by rank, and with the twin's layers put back."""
    found = run.part("ceilings")
    kinds = [
        ("oracle", "rank", ("oracle subspace projected out", "rank k")),
        ("layer_revert", "first_layer", ("the helpful twin's layers put back", "from this layer on")),
    ]
    present = [(found[name], key, titles) for name, key, titles in kinds if found.get(name)]
    if not present:
        return None
    width = panel_width(len(present), wide=wide)
    return side_by_side([_ceiling_panel(run, points, key=key, titles=titles, width=width) for points, key, titles in present], wide=wide)
