"""The summary that the terminal shows at the end of a study."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from resect.report.read import ordered
from resect.report.values import RATES, Json, Measure, finite, number, percent, read_measure, write

_COLUMNS = {
    "refusal_rate": "refused",
    "benign_refusal_rate": "benign refused",
    "kl_first_token": "KL first token",
    "kl_tokens": "KL tokens",
    "recovery": "recovery",
}


def _limit(value: float, *, measure: str) -> str:
    return f"{value * 100:.0f}" if measure in RATES else f"{value:.2g}"


def _short(measured: Measure | None, *, measure: str) -> str:
    """Return the value over its interval, limits with two digits: a terminal has 80 columns, the report has the rest."""
    if measured is None:
        return "–"
    value = write(measured.value, measure=measure)
    if measured.low is None or measured.high is None:
        return value
    gap = "–" if measure in RATES else "– "  # the blank lets a narrow terminal break a long interval between its limits
    return f"{value}\n[dim]{_limit(measured.low, measure=measure)}{gap}{_limit(measured.high, measure=measure)}[/dim]"


def summary_table(evaluation: Json, study: Json) -> Table:
    """Return arms against refusal, benign refusal, KL (nats), recovery and KL at matched refusal, 95 % intervals under the values.

    Columns that no arm has (recovery without a helpful twin) are left out; controls are dimmed.
    """
    arms, entries, matched = evaluation["arms"], study.get("arms") or {}, study.get("matched") or {}
    present = {name: title for name, title in _COLUMNS.items() if any(read_measure(arm.get(name)) for arm in arms.values())}
    level = finite(matched.get("refusal"))
    caption = "KL in nats from the base model; 95 % intervals; dimmed arms are controls"
    table = Table(title=escape(str(evaluation["model"])), caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for title in present.values():
        table.add_column(title, justify="right", overflow="fold")
    if level is not None:
        table.add_column(f"KL at {percent(level)} refused", justify="right", overflow="fold")
    for arm in ordered(arms):
        measures = arms[arm]
        cells = [_short(read_measure(measures.get(name)), measure=name) for name in present]
        if level is not None:
            kl = finite((matched.get("arms") or {}).get(arm, {}).get("kl"))
            cells.append("–" if kl is None else number(kl))
        style = "dim" if entries.get(arm, {}).get("control") else "bold" if arm == "sra" else None
        table.add_row(escape(arm), *cells, style=style)
    return table
