"""The summary that the terminal shows at the end of a contrast study."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from resect.report.values import Json, read_measure


def contrast_table(document: Json) -> Table:
    """Return the arms that are no controls against R of the paper's panel, refusals on test with intervals, KL and recovery."""
    protocol = {entry["arm"]: entry for entry in document["protocol"]["arms"]}
    caption = "R: fewest refusals of the panel with one layer edited. The rest: on test, at the cell that validation chose."
    table = Table(title=escape(str(document["model"]["name"])), caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for title in ("R", "refused", "benign refused", "KL tokens", "recovery"):
        table.add_column(title, justify="right", overflow="fold")
    for arm in sorted(document["arms"], key=lambda name: document["arms"][name]["order"]):
        entry, measured = document["arms"][arm], document["evaluation"][arm]["any"]
        if not entry["control"]:
            r = f"{protocol[arm]['least']}/{protocol[arm]['panel']}"
            rates = [_rate(measured[name]) for name in ("refusal_rate", "benign_refusal_rate")]
            table.add_row(escape(arm), r, *rates, f"{measured['kl_tokens']['value']:.2g}", _rate(measured["recovery"]))
    return table


def _rate(raw: object) -> str:
    found = read_measure(raw)
    if found is None or found.low is None or found.high is None:
        return "–"
    return f"{found.value:.0%} [dim]{found.low * 100:.0f}–{found.high * 100:.0f}[/dim]"
