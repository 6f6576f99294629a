"""The page of the contrast experiment: docs/contrast.md with its tables and figures, all from the rows of the organisms."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from contrast_claims import (
    ALONE,
    EVERYWHERE,
    FAILS,
    LEAST_KL,
    SEEN,
    TESTS,
    WAYS,
    Claim,
    Gap,
    M,
    Row,
    U,
    claims,
    first_tuned,
    interval,
    norm_ratios,
)

from resect.artifacts import write_text
from resect.evaluation.statistics import holm
from resect.organism.quality import below_bars
from resect.report.svg import configure

COMMAND = "python benchmarks/contrast.py"
TABLED = (
    U,
    M,
    f"{M}/raw_norm",
    "unmatched/class_means",
    "unmatched/class_means/raw_norm",
    "matched/class_means",
    "matched/class_means/raw_norm",
    "unmatched/som",
    "unmatched/som/raw_norm",
    "matched/som",
    "matched/som/raw_norm",
    "matched/som_svd",
    "dealt/class_means",
    f"{U}/projected",
    f"{M}/projected",
    f"{U}/n12",
    f"{M}/n12",
    f"{U}/last_user",
    f"{M}/last_user",
    f"{U}/mean",
    f"{M}/mean",
    "mixed/0.25",
    "mixed/0.5",
    "mixed/0.75",
    "unmatched/random",
    "unmatched/random_classes",
    "proposed/topic_free",
    "proposed/topic_ridge",
    "proposed/blend",
    "proposed/precision",
    "proposed/whitened",
)
COLOURS = {"unmatched": "#b45309", "matched": "#1d4ed8"}


def publish(rows: Sequence[Row], *, planned: int, seeds: int, docs: Path) -> dict[str, Any]:
    """Write page and figures, and return the gaps of every claim; `planned` organisms are as many for each of the seeds."""
    told = claims(rows)
    for name, chart in figures(rows, told).items():
        spec = configure(chart).to_dict()
        spec["config"]["background"] = "#ffffff"
        write_text(docs / "figures" / f"contrast_{name}.svg", vl_convert.vegalite_to_svg(spec) + "\n")
    write_text(docs / "contrast.md", page(rows, told, planned=planned, seeds=seeds))
    return {claim.question: {name: vars(g) | {"value": g.value if g.n else None} for name, g in claim.gaps.items()} for claim in told}


def page(rows: Sequence[Row], told: Sequence[Claim], *, planned: int, seeds: int) -> str:
    """Return the whole page."""
    parts = [
        "# Does topic-matched contrast fail?",
        _opening(rows, planned, seeds),
        "## Answers",
        *(_answer(claim, shown={c.figure for c in told[:i]}) for i, claim in enumerate(told)),
        "## Who fails under which condition",
        *_tables(rows),
        "## The organisms",
        _quality(rows),
        _organisms(rows),
        "## Every claim, its figure, its test and its command",
        _claims_table(told),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(rows: Sequence[Row], planned: int, planned_seeds: int) -> str:
    n = rows[0]["n"]
    seeds = sorted({row["seed"] for row in rows})
    full = [s for s in seeds if sum(row["seed"] == s for row in rows) == planned // planned_seeds]
    missing = (
        ""
        if len(rows) == planned
        else (
            f" **{planned - len(rows)} of the {planned} planned organisms are missing**: they were not trained when this page was "
            "written, and the same command adds them."
        )
    )
    return (
        f"Written by `{COMMAND}`; the wording around the numbers is chosen by the code from the tests named below. It rests on "
        f"{len(rows)} organisms: seeds {', '.join(map(str, seeds))} (none was used to make the language), "
        f"{len({row['architecture'] for row in rows})} architectures, {len({row['topic'] for row in rows})} topic strengths; of each "
        f"seed {planned // planned_seeds} are planned, and complete are: {', '.join(map(str, full)) or 'none'}.{missing}\n\n"
        "The claim under test is that of arXiv 2603.22061: with harmless prompts on the topics of the harmful ones, directions are inert; "
        f"with unmatched ones they work. Directions are made from at most {n['extract']} harmful prompts and about as many matched and "
        "unmatched ones (the study makes the sides exactly equal since these organisms were measured). "
        f"Each is tried from every layer, the layer is chosen on {n['harmful_validation']} + {n['harmless_validation']} validation prompts "
        f"and figures are from {n['harmful_test']} + {n['harmless_test']} test prompts, by the first answer token. *Everywhere*: one "
        "layer's directions are taken out of what all layers write, at weight 1. *Alone*: they are taken out of what their own layer "
        f"writes, at weight 1.2, the paper's largest. Before layer {first_tuned(rows)} safety tuning changed nothing, so only two "
        "plain arms are tried. An organism is one unit: gaps are paired over organisms (Student's 95 % interval, exact sign-flip test, "
        "Holm's correction over like gaps). "
        "*Higher* and *lower* ask for both, *alike* means that the interval lies within 10 points (1.5 times in KL, 0.05 in cosine), "
        f"*no higher* and *no lower* that one end does, *open* is the rest. Failing is leaving more than {FAILS:.0%} of the refusals. "
        f"What was seen beforehand: the arms and ways to edit were settled after the first organism of seed {SEEN}, the rules of reading "
        "while results came in; both plain arms are therefore compared without that seed, too. "
        f"The organisms of one seed share words and random numbers, so {len(rows)} of them are fewer than {len(rows)} independent ones: "
        "the main gap is also given with a seed as the unit. Organisms are tiny models of an invented language; what holds here may not "
        "hold on a model that people use."
    )


def _answer(claim: Claim, shown: set[str]) -> str:
    figure = [] if claim.figure in shown else [f"![{claim.question}](figures/{claim.figure}.svg)"]
    body = [(name, g.shown(g.value), g.span, f"{g.p:.2g}", str(g.n), g.verdict) for name, g in claim.gaps.items()]
    table = _grid(("gap", "value", "95 % interval", "p (Holm)", "n", "reading"), body)
    return "\n\n".join([f"### {claim.question}", claim.text, *figure, table])


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table for each way to edit: mean refusal rate over seeds, with an interval from three seeds on."""
    cells = sorted({(row["architecture"], row["topic"]) for row in rows})
    yield (
        "Refusals on test, mean over seeds (95 % interval from three seeds on, else the range); "
        f"**bold** where over {FAILS:.0%}, which is failing."
    )
    for way, name in WAYS.items():
        arms = [arm for arm in TABLED if way in rows[0]["arms"][arm]]
        body = []
        for arm in arms:
            found = [
                [row["arms"][arm][way]["test"]["refusal"] for row in rows if (row["architecture"], row["topic"]) == cell] for cell in cells
            ]
            body.append((f"`{arm}`", *map(_cell, found), _cell([v for values in found for v in values])))
        head = ("arm", *(f"{architecture}, topic {topic:g}" for architecture, topic in cells), "all")
        yield f"{name[0].upper()}{name[1:]}:\n\n{_grid(head, body)}"


def _cell(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    span = f"{min(values):.0%} to {max(values):.0%}" if low is None or high is None else f"{max(0.0, low):.0%} to {min(1.0, high):.0%}"
    text = f"{mean:.0%}" if len(values) == 1 else f"{mean:.0%} ({span})"
    return f"**{text}**" if mean > FAILS else text


def _quality(rows: Sequence[Row]) -> str:
    poor = {row["name"]: below_bars(row["quality"]) for row in rows}
    missed = "; ".join(f"{name} misses {', '.join(bars)}" for name, bars in poor.items() if bars)
    return f"Bars of a good organism (`resect.organism.quality`): {missed or f'all {len(rows)} organisms meet every one'}."


def _organisms(rows: Sequence[Row]) -> str:
    names = {"harmful_refusal": "refuses harmful", "matched_refusal": "refuses matched", "capability_exact": "capability right"}
    head = ("organism", *names.values(), "refuses two topics' words", "norm matched / unmatched", "recovery unmatched, matched")
    return _grid(head, (_organism(row, names) for row in rows))


def _organism(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    ratios = norm_ratios(row)
    recovery = ", ".join(f"{row['arms'][arm][EVERYWHERE]['recovery']:.0%}" for arm in (U, M))
    quality = (f"{row['quality'][name]:.1%}" for name in names)
    return (row["name"], *quality, f"{row['foreign_refusal']:.0%}", ", ".join(f"{r:.2g}" for r in ratios), recovery)


def _claims_table(told: Sequence[Claim]) -> str:
    """Return the table of claims; each stands with its first gap, and their p-values are adjusted together (Holm)."""
    main = [next(iter(claim.gaps.values())) for claim in told]
    body = [
        (c.question, f"[figure](figures/{c.figure}.svg)", f"`{TESTS}::{c.test}`", f"`{COMMAND}`", f"{p:.2g}")
        for c, p in zip(told, holm([g.p for g in main]), strict=True)
    ]
    return _grid(("question", "figure", "test of the sentence", "command", "p of its first gap, Holm over the claims"), body)


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def figures(rows: Sequence[Row], told: Sequence[Claim]) -> dict[str, Any]:
    """Return the charts by name."""
    return {
        "layers": layers_chart(rows),
        "geometry": geometry_chart(rows),
        "causes": causes_chart(told),
        "topic": topic_chart(rows),
        "proposals": proposals_chart(rows),
    }


def _colour() -> Any:
    return alt.Color("contrast:N", title=None, scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())))


def _points(values: list[dict[str, Any]], y: Any) -> Any:
    base = alt.Chart().encode(x=alt.X("layer:O", title="source layer", axis=alt.Axis(labelAngle=0)), color=_colour())
    marks = base.mark_point(size=14, opacity=0.45).encode(y=y) + base.mark_line().encode(y=alt.Y(f"mean({y.shorthand.split(':')[0]}):Q"))
    return marks, alt.Data(values=values)


def layers_chart(rows: Sequence[Row]) -> Any:
    """Refusals by source layer, each organism a point, the mean a line."""
    values = [
        {"layer": c["layer"], "refused": c["refusal"], "contrast": arm.split("/")[0], "way": WAYS[way]}
        for row in rows
        for arm in (U, M)
        for way in WAYS
        for c in row["arms"][arm][way]["cells"]
    ]
    marks, data = _points(values, alt.Y("refused:Q", title="harmful prompts refused", axis=alt.Axis(format="%")))
    return alt.layer(*marks.layer, data=data).properties(width=260, height=200).facet(column=alt.Column("way:N", title=None))


PANELS = {"norm": "norm of the difference", "split_half": "split-half cosine", "purity": "cosine with what tuning added"}


def geometry_chart(rows: Sequence[Row]) -> Any:
    """Norm, reliability and purity of both differences of means by layer."""
    charts = []
    for name, title in PANELS.items():
        values = [
            {"layer": layer, "value": max(value, LEAST_KL) if name == "norm" else value, "contrast": baseline}
            for row in rows
            for baseline in COLOURS
            for layer, value in enumerate(row["geometry"][f"{name}_{baseline}"])
        ]
        scale = alt.Scale(type="log") if name == "norm" else alt.Scale(domain=[-1, 1])
        marks, data = _points(values, alt.Y("value:Q", title=title, scale=scale))
        charts.append(alt.layer(*marks.layer, data=data).properties(width=190, height=190))
    return alt.hconcat(*charts)


def causes_chart(told: Sequence[Claim]) -> Any:
    """Every gap in refusals with its interval, by question."""
    gaps = {
        c.question: {k: g for k, g in c.gaps.items() if g.unit == "refusal"} for c in told if not c.question.startswith(("Where", "Prop"))
    }
    return alt.vconcat(*(_forest(question, found) for question, found in gaps.items() if found)).resolve_scale(x="shared")


def _forest(question: str, gaps: Mapping[str, Gap]) -> Any:
    values = [{"gap": k, "value": g.value, "low": _or(g.low, g.value), "high": _or(g.high, g.value)} for k, g in gaps.items()]
    base = alt.Chart().encode(y=alt.Y("gap:N", title=None, sort=None, axis=alt.Axis(labelLimit=420)))
    x = alt.X("value:Q", title=None, axis=alt.Axis(format="+%"), scale=alt.Scale(domain=[-1, 1], clamp=True))
    marks = (
        alt.Chart().mark_rule(color="#888888").encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1).encode(x=x),
    )
    return alt.layer(*marks, data=alt.Data(values=values)).properties(width=360, height=alt.Step(17), title=question)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def topic_chart(rows: Sequence[Row]) -> Any:
    """Matched less unmatched refusals, one layer at a time, against topic strength."""
    values = [
        {
            "topic": row["topic"],
            "gap": row["arms"][M][way]["test"]["refusal"] - row["arms"][U][way]["test"]["refusal"],
            "architecture": row["architecture"],
            "way": WAYS[way],
        }
        for row in rows
        for way in WAYS
    ]
    base = alt.Chart().encode(x=alt.X("topic:Q", title="topic strength"), color=alt.Color("architecture:N", title=None))
    marks = base.mark_point(filled=True, size=50).encode(
        y=alt.Y("gap:Q", title="matched less unmatched refusals", axis=alt.Axis(format="+%"))
    )
    return (
        alt.layer(marks, base.mark_line().encode(y="mean(gap):Q"), data=alt.Data(values=values))
        .properties(width=260, height=200)
        .facet(column=alt.Column("way:N", title=None))
    )


def proposals_chart(rows: Sequence[Row]) -> Any:
    """Refusals one layer at a time and KL at equal refusal everywhere (none if not reached), of both parents and every proposal."""
    arms = [U, M, *(a for a in rows[0]["arms"] if a.startswith("proposed/"))]
    values = [
        {
            "arm": arm.removeprefix("proposed/").replace("/mean_difference", ""),
            "refused": row["arms"][arm][ALONE]["test"]["refusal"],
            "kl": None if (kl := row["arms"][arm][EVERYWHERE]["matched_kl"]) is None else max(kl, LEAST_KL),
        }
        for row in rows
        for arm in arms
    ]
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("arm:N", title=None, sort=None))
    left = base.mark_point(size=30).encode(x=alt.X("refused:Q", title="refused, one layer at a time", axis=alt.Axis(format="%")))
    right = base.mark_point(size=30).encode(x=alt.X("kl:Q", title="KL at 5 % refusals, everywhere (nats)", scale=alt.Scale(type="log")))
    means = [
        base.mark_tick(thickness=3, color="#b91c1c").encode(x=f"{how}({key}):Q") for how, key in (("mean", "refused"), ("median", "kl"))
    ]
    return alt.hconcat(*((points + mean).properties(width=260, height=200) for points, mean in zip((left, right), means, strict=True)))
