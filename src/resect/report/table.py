"""The summary that the terminal shows at the end of a study."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from resect.report.read import ordered
from resect.report.values import RATES, Json, Measure, finite, percent, read_measure

_COLUMNS = {
    "refusal_rate": "refused",
    "benign_refusal_rate": "benign refused",
    "kl_first_token": "KL first token",
    "kl_tokens": "KL tokens",
    "recovery": "recovery",
}


def _short(measured: Measure | None, *, measure: str) -> str:
    """Return a rate with its interval, other figures alone with two digits: a terminal has 80 columns, the report has the rest."""
    if measured is None:
        return "–"
    if measured.unresolved:
        return f"≤ {measured.floor:.0e}"
    if measure not in RATES:
        return _digits(measured.value)
    value = f"{measured.value:.0%}"
    if measured.low is None or measured.high is None:
        return value
    return f"{value} [dim]{measured.low * 100:.0f}–{measured.high * 100:.0f}[/dim]"


def _digits(value: float) -> str:
    """Return two significant digits; rounding noise of the base model against itself is 0."""
    return "0" if abs(value) < 1e-9 else f"{value:.2g}"


def summary_table(evaluation: Json, study: Json) -> Table:
    """Return arms against refusal, benign refusal, KL (nats), recovery and KL at matched refusal, 95 % intervals under the values.

    Columns that no arm has (recovery without a helpful twin) are left out; controls are dimmed.
    """
    arms, entries, matched = evaluation["arms"], study.get("arms") or {}, study.get("matched") or {}
    present = {name: title for name, title in _COLUMNS.items() if any(read_measure(arm.get(name)) for arm in arms.values())}
    level = finite(matched.get("refusal"))
    caption = "KL: nats from the base model. Ranges: 95 % intervals. Dimmed arms: controls."
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
            cells.append("–" if kl is None else _digits(kl))
        style = "dim" if entries.get(arm, {}).get("control") else "bold" if arm == "sra" else None
        table.add_row(escape(arm), *cells, style=style)
    return table
