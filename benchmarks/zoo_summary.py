"""What the zoo says: figures of one study, medians and rank correlations over organisms, the table and the charts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resect.evaluation.statistics import mean_of, spearman

RATIOS = {
    "standard/sra": ("standard", "sra"),
    "standard/sra_flat": ("standard", "sra_flat"),
    "standard/standard_sra_strength": ("standard", "standard_sra_strength"),
    "standard/random_atoms": ("standard", "random_atoms"),
    "random_atoms/sra": ("random_atoms", "sra"),
    "standard_sra_strength/sra": ("standard_sra_strength", "sra"),
    "projected/sra": ("projected", "sra"),
    "projected/sra_flat": ("projected", "sra_flat"),
    "whitened/sra": ("whitened", "sra"),
    "projected/whitened": ("projected", "whitened"),
    "projected/combined": ("projected", "combined"),
}
GAIN = "standard/sra"  # what the forecast is about
DOSE = "standard/sra_flat"  # what the cleaning alone gains
Row = Mapping[str, Any]


def figures(evaluation: Row, study: Row) -> dict[str, Any]:
    """Return what the zoo keeps of one study."""
    matched = {arm: reading["kl"] for arm, reading in study["matched"]["arms"].items()}
    arms = {
        arm: {
            "refusal": entry["refusal_rate"]["value"],
            "benign_refusal": entry["benign_refusal_rate"]["value"],
            "kl": entry["kl_first_token"]["value"],
            "kl_tokens": entry["kl_tokens"]["value"],
            "recovery": entry["recovery"]["value"],
            "echo": study["judges"][arm]["refusal_rate_echo"]["value"],
            "kl_matched": matched.get(arm),
            "kl_top_share": _top_share(study["drift_quantiles"].get(arm)),
            "kl_to_twin": study["twin"][arm]["value"],
            "choice": {k: study["arms"][arm][k] for k in ("source", "strength", "softness")} if arm in study["arms"] else None,
        }
        for arm, entry in evaluation["arms"].items()
    }
    forecast = study["forecast"]
    return {
        "arms": arms,
        "ratios": {name: _ratio(matched, *pair) for name, pair in RATIOS.items()},
        "forecast": {forecast["quantity"]: forecast["value"], **forecast["others"]},
        "ceilings": study["ceilings"],
        "passes": [{k: p[k] for k in ("pass", "refusal_rate", "recovery", "r_squared", "stopped")} for p in study["passes"]],
    }


def _top_share(spread: Row | None) -> float | None:
    """Return which share of the KL over all prompts the worst prompt has."""
    return spread["max"] / (spread["mean"] * spread["n"]) if spread and spread["mean"] > 0 else None


def _ratio(matched: Mapping[str, float | None], a: str, b: str) -> float | None:
    first, second = matched.get(a), matched.get(b)
    return None if first is None or not second else first / second


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return, per setting: SRA's refusals over the seeds, ratios of KL, rank correlations of the forecasts, recovery by arm."""
    seeds = [r for r in rows if r["group"] == "seeds"]
    gated = [r for r in rows if r["tuning"] == "gated"]
    return {
        "organisms": len(rows),
        "forecast_over_both_settings": pooled_correlation(gated),
        "settings": {
            setting: {
                "sra_refusal_at_most_2_percent": f"{sum(_arm(r, setting, 'sra')['refusal'] <= 0.02 for r in seeds)} of {len(seeds)} seeds",
                "ratios_over_seeds": {name: geometric(seeds, setting, name) for name in RATIOS},
                "ratios_over_gated": {name: geometric(gated, setting, name) for name in RATIOS},
                "forecast_correlation": correlations(gated, setting),
                "forecast_hits": hits(gated, setting),
                "dose_response": dose_response(gated, setting),
                "recovery_over_gated": recoveries(gated, setting),
            }
            for setting in ("any", "per_layer")
        },
    }


def _arm(row: Row, setting: str, arm: str) -> Row:
    return row["settings"][setting]["arms"][arm]


def _values(rows: Iterable[Row], setting: str, ratio: str) -> list[float]:
    found = (r["settings"][setting]["ratios"].get(ratio) for r in rows)
    return [v for v in found if v]


def geometric(rows: Sequence[Row], setting: str, ratio: str) -> dict[str, Any] | None:
    """Return the geometric mean of ratios with a bootstrap interval over organisms, their range, and how many have none."""
    values = _values(rows, setting, ratio)
    if len(values) < 3:
        return None
    logs = mean_of([math.log(v) for v in values], unit="log ratio")
    return {
        "mean": math.exp(logs.value),
        "low": math.exp(logs.low),
        "high": math.exp(logs.high),
        "least": min(values),
        "most": max(values),
        "n": len(values),
        "unreached": len(rows) - len(values),
    }


def correlations(rows: Sequence[Row], setting: str) -> dict[str, Any]:
    """Return Spearman's rank correlation of each quantity known before any edit with the log gain.

    A predicted gain of None (the raw direction leads nowhere to first order) ranks above every number.
    """
    usable = [r["settings"][setting] for r in rows if r["settings"][setting]["ratios"].get(GAIN)]
    gains = [math.log(s["ratios"][GAIN]) for s in usable]
    found = {}
    for name in usable[0]["forecast"] if len(usable) >= 5 else ():
        values = [s["forecast"][name] for s in usable]
        top = 2 * max((v for v in values if v is not None), default=1.0)
        found[name] = _rank([top if v is None else v for v in values], gains)
    return found


def pooled_correlation(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the rank correlation of the predicted with the measured gain over both settings of every organism.

    Most of it is the difference between the settings, which the forecast is told; it says nothing of the seeds within one.
    """
    cells = [s for r in rows for s in r["settings"].values() if s["ratios"].get(GAIN) and s["forecast"]["predicted_gain"]]
    return _rank([s["forecast"]["predicted_gain"] for s in cells], [math.log(s["ratios"][GAIN]) for s in cells])


def _rank(values: Sequence[float], gains: Sequence[float]) -> dict[str, Any] | None:
    if len(set(values)) < 3:
        return None
    measured = spearman(values, gains)
    return {"rho": measured.value, "low": measured.low, "high": measured.high, "n": measured.n}


def hits(rows: Sequence[Row], setting: str) -> str:
    """Return on how many organisms the forecast's verdict (cleaning pays or not) is the measured one."""
    pairs = [(s["forecast"]["predicted_gain"], s["ratios"].get(GAIN)) for s in (r["settings"][setting] for r in rows)]
    right = [(predicted is None or predicted > 1) == (gain > 1) for predicted, gain in pairs if gain]
    return f"{sum(right)} of {len(right)}"


def dose_response(rows: Sequence[Row], setting: str) -> dict[str, Any]:
    """Return the cleaning's gain by entanglement over the seeds that have every value, and the rank correlation with it."""
    sweep = dose_members(rows)
    values = sorted({r["entanglement"] for r in sweep})
    pairs = [(r["entanglement"], r["settings"][setting]["ratios"].get(DOSE)) for r in sweep]
    known = [(e, math.log(gain)) for e, gain in pairs if gain]
    return {
        "by_value": {f"{e:g}": geometric([r for r in sweep if r["entanglement"] == e], setting, DOSE) for e in values},
        "trend": _rank([e for e, _ in known], [g for _, g in known]) if len(known) >= 5 else None,
    }


def dose_members(rows: Iterable[Row]) -> list[Row]:
    """Return the organisms of the entanglement sweep: same architecture and recipe, seeds 0 to 2."""
    return [r for r in rows if (r["architecture"], r["tuning"]) == ("qwen3", "gated") and r["seed"] < 3]


def recoveries(rows: Sequence[Row], setting: str) -> dict[str, Any]:
    """Return the means over organisms of recovery, refusal, echo, KL to the twin and the worst prompt's share of the KL, by arm."""
    arms = rows[0]["settings"][setting]["arms"] if rows else {}
    keys = ("recovery", "refusal", "echo", "kl_to_twin", "kl_top_share")
    return {arm: {k: _mean(_arm(r, setting, arm)[k] for r in rows) for k in keys} for arm in arms}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def table(rows: Sequence[Row]) -> str:
    """Return one line per organism and setting: refusal / recovery / matched KL by arm, and the ratios."""
    lines = []
    for setting in ("any", "per_layer"):
        arms = [a for a in rows[0]["settings"][setting]["arms"] if a != "base"]
        lines.append(f"\n{setting}: refusal % / recovery % / KL at matched refusal")
        lines.append(f"{'organism':30s}" + "".join(f"{a[:14]:>18s}" for a in arms))
        for row in rows:
            cells = "".join(f"{_cell(_arm(row, setting, a)):>18s}" for a in arms)
            lines.append(f"{row['name']:30s}{cells}")
    return "\n".join(lines)


def _cell(arm: Row) -> str:
    kl = arm["kl_matched"]
    return f"{arm['refusal']:.0%}/{arm['recovery']:.0%}/" + ("-" if kl is None else f"{kl:.1e}")


def sentences(summary: Row) -> str:
    """Return the summary as a few lines."""
    lines = []
    for setting, found in summary["settings"].items():
        lines.append(f"[{setting}] sra refuses at most 2 %: {found['sra_refusal_at_most_2_percent']}")
        for name, ratio in found["ratios_over_seeds"].items():
            if ratio:
                lines.append(
                    f"[{setting}] KL {name} over seeds: {ratio['mean']:.2f} (95 % {ratio['low']:.2f} to {ratio['high']:.2f}; range "
                    f"{ratio['least']:.2f} to {ratio['most']:.2f}; n {ratio['n']})"
                )
    return "\n".join(lines)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write the dose-response and the forecast charts as SVG."""
    import altair as alt
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    dose = [
        {"entanglement": r["entanglement"], "gain": gain, "setting": setting, "seed": str(r["seed"])}
        for r in dose_members(rows)
        for setting in ("any", "per_layer")
        if (gain := r["settings"][setting]["ratios"].get(DOSE))
    ]
    points = alt.Chart(alt.Data(values=dose)).encode(
        x=alt.X("entanglement:Q", title="entanglement of form and harm in the language"),
        y=alt.Y("gain:Q", title="KL raw / KL cleaned, at matched refusal", scale=alt.Scale(type="log")),
        color=alt.Color("setting:N", title="direction"),
    )
    chart = points.mark_point(filled=True, size=60) + points.mark_line().encode(y="median(gain):Q")
    spec = chart.properties(width=420, height=260, title="Dose-response: what cleaning gains (three seeds, median line)").to_json()
    (folder / "dose_response.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    known = [
        {"quantity": s["forecast"]["predicted_gain"], "gain": gain, "setting": setting, "group": r["group"]}
        for r in rows
        if r["tuning"] == "gated"
        for setting, s in r["settings"].items()
        if (gain := s["ratios"].get(GAIN)) and s["forecast"]["predicted_gain"]
    ]
    scatter = (
        alt.Chart(alt.Data(values=known))
        .mark_point(filled=True, size=50)
        .encode(
            x=alt.X("quantity:Q", title="predicted gain, before any edit", scale=alt.Scale(type="log")),
            y=alt.Y("gain:Q", title="KL of standard / KL of sra, at matched refusal", scale=alt.Scale(type="log")),
            color=alt.Color("setting:N", title="direction"),
            shape=alt.Shape("group:N", title="group"),
        )
    )
    spec = scatter.properties(width=420, height=260, title="Forecast against measured gain").to_json()
    (folder / "forecast.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


START, END = "<!-- zoo: written by benchmarks/zoo.py -->", "<!-- end of zoo -->"
SETTING_NAMES = {"any": "source layer chosen on validation", "per_layer": "each layer's own direction (the paper's setting)"}


def write_results(page: Path, rows: Sequence[Row], summary: Row) -> None:
    """Put the tables between the markers of docs/results.md."""
    text = page.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(f"{before}{START}\n\n{markdown(rows, summary)}\n\n{END}{after}", encoding="utf-8")


def markdown(rows: Sequence[Row], summary: Row) -> str:
    """Return organisms, ratios of KL, rank correlations and recoveries as Markdown tables."""
    both = "{} (95 % {}, n {})".format(*_rank_cells(summary["forecast_over_both_settings"]))
    parts = [_quality(rows), f"Rank correlation of predicted and measured gain over both settings together: {both}."]
    for setting, name in SETTING_NAMES.items():
        found = summary["settings"][setting]
        parts += [f"### With {name}", f"`sra` refuses at most 2 % of the test prompts on {found['sra_refusal_at_most_2_percent']}."]
        parts += [_organisms(rows, setting), _ratio_table(found), _recovery_table(found), _forecast_table(found), _dose_table(found)]
    return "\n\n".join(parts)


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _quality(rows: Sequence[Row]) -> str:
    names = ("harmful_refusal", "harmless_refusal", "matched_refusal", "capability_exact", "helpful_refusal")
    head = ("organism", "refuses harmful", "refuses benign", "refuses matched", "capability right", "twin refuses")
    return _grid(head, [(row["name"], *(f"{row['quality'][n]:.1%}" for n in names)) for row in rows])


def _organisms(rows: Sequence[Row], setting: str) -> str:
    arms = [a for a in rows[0]["settings"][setting]["arms"] if a != "base"]
    caption = "Refusal / recovery / first-token KL at matched refusal (5 %), on test prompts:\n\n"
    return caption + _grid(("organism", *arms), [(r["name"], *(_cell(_arm(r, setting, a)) for a in arms)) for r in rows])


def _ratio_table(found: Row) -> str:
    body = []
    for name in RATIOS:
        cells = [_written(found[group][name]) for group in ("ratios_over_seeds", "ratios_over_gated")]
        body.append((name, *cells))
    caption = (
        "KL ratios at matched refusal: geometric mean (95 % bootstrap interval over organisms; range; n; not reached by either arm):\n\n"
    )
    return caption + _grid(("KL ratio", "over the seeds", "over all gated organisms"), body)


def _written(ratio: Row | None) -> str:
    if ratio is None:
        return "fewer than three"
    span = f"{ratio['low']:.2g} to {ratio['high']:.2g}; {ratio['least']:.2g} to {ratio['most']:.2g}"
    return f"{ratio['mean']:.2g} ({span}; n {ratio['n']}; {ratio['unreached']})"


def _recovery_table(found: Row) -> str:
    body = [
        (arm, *(f"{v[k]:.1%}" for k in ("refusal", "recovery", "echo")), f"{v['kl_to_twin']:.2g}", _share(v["kl_top_share"]))
        for arm, v in found["recovery_over_gated"].items()
    ]
    head = ("arm", "refused", "recovery", "echo of refusals", "KL to the twin", "worst prompt's share of KL")
    return "Means over gated organisms (KL to the twin in nats per token along its answers to harmful prompts):\n\n" + _grid(head, body)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _forecast_table(found: Row) -> str:
    body = [(name, *_rank_cells(rho)) for name, rho in found["forecast_correlation"].items()]
    caption = (
        f"Spearman's rank correlation of quantities known before any edit with the log of KL {GAIN}, over gated organisms. The forecast's "
        f"verdict (pays or not) was right on {found['forecast_hits']}.\n\n"
    )
    return caption + _grid(("quantity", "rho", "95 % interval", "n"), body)


def _rank_cells(rho: Row | None) -> tuple[str, str, str]:
    return ("constant", "", "") if rho is None else (f"{rho['rho']:+.2f}", f"{rho['low']:+.2f} to {rho['high']:+.2f}", str(rho["n"]))


def _dose_table(found: Row) -> str:
    dose = found["dose_response"]
    trend = "{} ({}, n {})".format(*_rank_cells(dose["trend"])) if dose["trend"] else "not known"
    caption = f"Gain of the cleaning alone (KL {DOSE}) by entanglement; rank correlation with entanglement {trend}:\n\n"
    return caption + _grid(("entanglement", "gain"), [(value, _written(ratio)) for value, ratio in dose["by_value"].items()])
