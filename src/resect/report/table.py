"""The summary that the terminal shows at the end of a study."""

from rich.table import Table

from resect.report.values import Json, Measure, finite, number, percent, read_measure, write

_COLUMNS = {
    "refusal_rate": "refusals",
    "benign_refusal_rate": "benign refusals",
    "kl_first_token": "KL first token",
    "kl_tokens": "KL tokens",
    "recovery": "recovery",
}


def _short(measured: Measure | None, *, measure: str) -> str:
    if measured is None:
        return "–"
    value = write(measured.value, measure=measure)
    if measured.low is None or measured.high is None:
        return value
    low, high = write(measured.low, measure=measure).removesuffix(" %"), write(measured.high, measure=measure).removesuffix(" %")
    return f"{value} [dim]{low}…{high}[/dim]"


def summary_table(evaluation: Json, study: Json) -> Table:
    """Return arms against refusal, benign refusal, KL (nats), recovery and KL at matched refusal, 95 % intervals beside the values.

    Columns that no arm has (recovery without a helpful twin) are left out; controls are dimmed.
    """
    arms, entries, matched = evaluation["arms"], study.get("arms") or {}, study.get("matched") or {}
    present = {name: title for name, title in _COLUMNS.items() if any(read_measure(arm.get(name)) for arm in arms.values())}
    level = finite(matched.get("refusal"))
    table = Table(title=str(evaluation["model"]), caption="KL in nats from the base model; 95 % intervals; dimmed arms are controls")
    table.add_column("arm", no_wrap=True)
    for title in present.values():
        table.add_column(title, justify="right")
    if level is not None:
        table.add_column(f"KL at {percent(level)} refusals", justify="right")
    for arm, measures in arms.items():
        cells = [_short(read_measure(measures.get(name)), measure=name) for name in present]
        if level is not None:
            kl = finite((matched.get("arms") or {}).get(arm, {}).get("kl"))
            cells.append("–" if kl is None else number(kl))
        style = "dim" if entries.get(arm, {}).get("control") else "bold" if arm == "sra" else None
        table.add_row(arm, *cells, style=style)
    return table
