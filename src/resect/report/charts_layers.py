"""The charts over layers, passes, λ and rank: cosine heat maps, strengths, R², sweeps, ceilings. None where there is no data."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from resect.report.charts import NARROW, WIDE, Chart, data
from resect.report.read import RunFolder
from resect.report.theme import BINS, PALETTE, ROLES, arm_styles, diverging
from resect.report.values import finite, hover, number, percent, read_measure, short

_INK, _MUTED, _AXIS = (PALETTE[name][0] for name in ("ink", "muted", "axis"))
_MAIN = PALETTE["arm-sra"][0]


def _panels(charts: Sequence[Any], *, wide: bool) -> Any:
    return alt.hconcat(*charts, spacing=62, bounds="flush") if wide else alt.vconcat(*charts, spacing=26)


def _panel_width(count: int, *, wide: bool) -> int:
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
        y = alt.Y("atom:N", sort=names, title=None, axis=alt.Axis(labelLimit=150, minExtent=150, ticks=False, domain=False, labelColor=_INK))
        cells = alt.Chart(data(mine)).mark_rect().encode(x=x, y=y, fill=alt.Fill("colour:N", scale=None), description="tip:N")
        sections.append(cells.properties(width=min(620, max(250, 12 * len(table))), height=alt.Step(15), title=f"{role}s"))
    return alt.vconcat(*sections, spacing=10)


# ---- strength by layer ---------------------------------------------------------------------------------------------


def strength_by_layer(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return the strength γ by layer as one small chart for each arm, all on the same axes."""
    styles = arm_styles(run.arms, run.controls)
    arms = {arm: entry["profile"] for arm, entry in run.part("arms").items() if entry.get("profile") and arm in styles and any(entry["profile"])}
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
        axis = alt.Axis(title="strength γ" if first else None, tickCount=3, domain=False, ticks=False, labels=first, minExtent=30 if first else 0)
        y = alt.Y("gamma:Q", scale=alt.Scale(domain=[0, top * 1.05], nice=False), axis=axis)
        bars = alt.Chart(data(rows)).mark_bar(color=styles[arm].colour).encode(x=x, y=y, description="tip:N")
        one = alt.Chart(data([{"y": 1}])).mark_rule(color=_AXIS, strokeDash=[3, 3], aria=False).encode(y="y:Q")
        width = (WIDE - 70) // 4 - 22 if wide else (NARROW - 66) // 2 - 10
        charts.append((bars + one).properties(width=width, height=92, title=arm))
    return alt.concat(*charts, columns=columns, spacing=20 if wide else 14)


# ---- λ, R², filter -------------------------------------------------------------------------------------------------


def _line(rows: list[dict[str, Any]], *, x: alt.X, title: str, width: int, percent_axis: bool = False, colour: str = _MAIN) -> Chart:
    top = max((row.get("high", row["y"]) for row in rows), default=1.0)
    scale = alt.Scale(domain=[0, min(1.0, max(0.05, top * 1.05))]) if percent_axis else alt.Scale(zero=True)
    y = alt.Y("y:Q", scale=scale, axis=alt.Axis(title=None, tickCount=4, domain=False, ticks=False, format="%" if percent_axis else "~g"))
    base = alt.Chart(data(rows)).encode(x=x, y=y)
    layers = [base.mark_line(strokeWidth=1.8, color=colour, aria=False)]
    if any("low" in row for row in rows):
        layers.append(base.mark_rule(strokeWidth=1.4, color=colour, aria=False).encode(y="low:Q", y2="high:Q"))
    layers.append(base.mark_circle(size=40, color=colour, opacity=1).encode(description="tip:N"))
    return alt.layer(*layers).properties(width=width, height=150, title=title)


def _measured(points: list[Any], *, x: str, measure: str, name: str) -> list[dict[str, Any]]:
    rows = []
    for point in points:
        measured = read_measure(point.get(measure))
        if measured:
            low = measured.value if measured.low is None else measured.low
            high = measured.value if measured.high is None else measured.high
            tip = hover(f"{name} {number(point[x])}", measured, measure=measure)
            rows.append({"x": short(point[x]), "y": measured.value, "low": low, "high": high, "tip": tip})
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
    width = _panel_width(3, wide=wide)
    refusals = _measured(points, x="lambda", measure="refusal_rate", name="λ")
    drifts = _measured(points, x="lambda", measure="kl_first_token", name="λ")
    panels = [
        _line(refusals, x=x, title="harmful prompts refused", width=width, percent_axis=True),
        _line(drifts, x=x, title="first-token KL, nats", width=width, colour=PALETTE["arm-standard"][0]),
        _line(cosines, x=x, title="cosine with the raw direction", width=width, colour=PALETTE["arm-projected"][0]),
    ]
    return _panels([panel for panel, rows in zip(panels, (refusals, drifts, cosines), strict=True) if rows], wide=wide)


def r_squared(run: RunFolder, *, wide: bool) -> Chart | None:
    """Return R² of the raw direction on the atoms by layer and, where known, the effective number of atoms the ridge removes."""
    spectrum = run.part("spectrum")
    values = [finite(value) for value in spectrum.get("r_squared") or []]
    if not any(value is not None for value in values):
        return None
    filters = [math.fsum(row) for row in spectrum.get("filter") or []]
    every = max(1, math.ceil(len(values) / 12))
    x = alt.X("x:O", axis=alt.Axis(title="layer", labelAngle=0, values=list(range(0, len(values), every)), ticks=False))
    width = _panel_width(2 if filters else 1, wide=wide)
    shares = [{"x": i, "y": value, "tip": f"layer {i}: R² {value:.3f}"} for i, value in enumerate(values) if value is not None]
    removed = [{"x": i, "y": value, "tip": f"layer {i}: {value:.2f} atoms"} for i, value in enumerate(filters)]
    panels = [_line(shares, x=x, title="R² of the raw direction on the atoms", width=width)]
    if removed:
        title = "effective number of atoms removed, Σ s²/(s²+λ)" if wide else "effective atoms removed, Σ s²/(s²+λ)"
        panels.append(_line(removed, x=x, title=title, width=width, colour=PALETTE["arm-projected"][0]))
    return _panels(panels, wide=wide)


# ---- passes --------------------------------------------------------------------------------------------------------


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
    sizes = {name: max(abs(each["coefficients"].get(name, 0.0)) for each in passes) for each in passes for name in each.get("coefficients") or {}}
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
    span = (max(row["y"] for row in rows) - min(row["y"] for row in rows)) or 1.0
    last = list({row["atom"]: row for row in rows}.values())
    places = spread([row["y"] for row in last], gap=span * 15 / height)
    labels = [row | {"place": place} for row, place in zip(last, places, strict=True)]
    used = [role for role in ROLES if any(row["role"] == role for row in rows)]
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("role:N", scale=alt.Scale(domain=used, range=[PALETTE[f"role-{role}"][0] for role in used]), legend=legend)
    x = alt.X("pass:O", axis=alt.Axis(title="pass", labelAngle=0), scale=alt.Scale(padding=0.2))
    y = alt.Y("y:Q", axis=alt.Axis(title="coefficient of the atom in the raw direction" if wide else "atom coefficient", tickCount=5, domain=False))
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour)
    zero = alt.Chart(data([{"y": 0}])).mark_rule(color=_AXIS, aria=False).encode(y="y:Q")
    text = alt.Chart(data(labels)).mark_text(align="left", dx=10, fontSize=12, aria=False).encode(x=x, y="place:Q", text="atom:N", color=colour)
    lines = base.mark_line(strokeWidth=1.8, aria=False).encode(detail="atom:N")
    return alt.layer(zero, lines, base.mark_circle(size=45, opacity=1).encode(description="tip:N"), text).properties(width=width, height=height)


# ---- ceilings ------------------------------------------------------------------------------------------------------


def _ceiling_panel(run: RunFolder, points: list[Any], *, key: str, titles: tuple[str, str], width: int) -> Chart:
    kinds = {"recovery": _MAIN, "refusal_rate": PALETTE["refuse"][0]}
    words = {"recovery": "recovery", "refusal_rate": "refusals"}
    rows = [
        row | {"kind": words[kind]} for kind in kinds for row in _measured(points, x=key, measure=kind, name=f"{words[kind]}, {titles[1]}")
    ]
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(words.values()), range=list(kinds.values())), legend=legend)
    x = alt.X("x:N", sort=[short(point[key]) for point in points], axis=alt.Axis(title=titles[1], labelAngle=0))
    y = alt.Y("y:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title=None, format="%", tickCount=5, domain=False, ticks=False))
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.8, aria=False),
        base.mark_rule(strokeWidth=1.4, aria=False).encode(y="low:Q", y2="high:Q"),
        base.mark_circle(size=45, opacity=1).encode(description="tip:N"),
    ]
    reached = run.measure("sra", "recovery")
    if reached:
        note = alt.Chart(data([{"y": reached.value, "text": f"sra reaches {percent(reached.value)}"}])).encode(y="y:Q")
        layers += [
            note.mark_rule(strokeDash=[4, 3], color=_INK, aria=False),
            note.mark_text(align="left", x=4, dy=-7, color=_INK, fontSize=11.5, aria=False).encode(text="text:N"),
        ]
    return alt.layer(*layers).properties(width=width, height=200, title=titles[0])


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
    width = _panel_width(len(present), wide=wide)
    return _panels([_ceiling_panel(run, points, key=key, titles=titles, width=width) for points, key, titles in present], wide=wide)
