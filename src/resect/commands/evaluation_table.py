"""An evaluation on a suite as the terminal shows it: figures with intervals, judges side by side, tests, and what is missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resect.commands import console
from resect.evaluation.sample_size import hint
from resect.report.values import number, p_value, percent, read_measure

_UNITS = {"fraction"}
_MOST = 12  # comparisons shown; all are in evaluation.json


def show(evaluation: Mapping[str, Any]) -> None:
    """Show everything that a reader needs before quoting a figure."""
    _show_judges(evaluation)
    _show_figures(evaluation)
    _show_comparisons(evaluation["comparisons"])
    for arm, entry in evaluation["arms"].items():
        for line in (*entry["differences"].values(), *entry["missing"]):
            console.warn(f"{arm}: {line}")


def _show_judges(evaluation: Mapping[str, Any]) -> None:
    rows = [(arm, name, found) for arm, entry in evaluation["arms"].items() for name, found in entry.get("judges", {}).items()]
    if not rows:
        return
    table = console.table("arm", "judge", "refused", "complied", "benign refused", "benign complied", title=str(evaluation["model"]))
    keys = ("refusal_rate", "compliance_rate", "benign_refusal_rate", "benign_compliance_rate")
    for arm, name, found in rows:
        cells = ("failed",) * 4 if "error" in found else tuple(_cell(found.get(key)) for key in keys)
        table.add_row(arm, name, *cells)
    console.show(table)
    for arm, entry in evaluation["arms"].items():
        for pair, found in (entry.get("agreement") or {}).items():
            share, kappa = (read_measure((found or {}).get(key)) for key in ("agreement", "kappa"))
            if share and kappa:
                span = f"{number(kappa.value)} ({number(kappa.low)} to {number(kappa.high)})"
                console.say(f"{arm}: {pair} agree on {percent(share.value)} of {share.n} responses, kappa {span}.")


def _show_figures(evaluation: Mapping[str, Any]) -> None:
    arms = {arm: _figures(entry) for arm, entry in evaluation["arms"].items()}
    names = list(dict.fromkeys(name for figures in arms.values() for name in figures))
    apart = [", ".join(entry["differences"]) for entry in evaluation["arms"].values()]
    if not names and not any(apart):
        return
    table = console.table("measure", *arms)
    table.add_row("model, dtype", *(_model(evaluation["subjects"][arm]) for arm in arms))
    if any(apart):
        table.add_row("differs from the base in", *apart)
    for name in names:
        table.add_row(name, *(_cell(figures.get(name)) for figures in arms.values()))
    console.show(table)


def _model(about: Mapping[str, str]) -> str:
    """Return name and dtype of a model; of a folder the last part, since columns are narrow."""
    name = about["model"]
    return f"{Path(name).name if Path(name).is_dir() else name}, {about['dtype']}"


def _figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an arm besides its verdicts, by the name under which they are shown."""
    drift = entry.get("drift") or {}
    found = {"KL first token, nats": entry.get("kl_first_token"), "KL tokens, nats per token": entry.get("kl_tokens")}
    found |= {"  of it about refusing": drift.get("refusing"), "  of it about answering": drift.get("answering")}
    found |= {"top token changed": drift.get("top1_flips"), "entropy added, nats per token": drift.get("entropy_shift")}
    found |= {f"perplexity, {name}": measured for name, measured in entry["perplexity"].items()}
    found |= {"exact match": (entry.get("exact_match") or {}).get("all"), "pass@1": (entry.get("pass_at_1") or {}).get("all")}
    found |= {f"{task}, {metric}": m for task, metrics in entry["tasks"].items() for metric, m in metrics.items()}
    return {name: measured for name, measured in found.items() if measured is not None}


def _show_comparisons(comparisons: list[Mapping[str, Any]]) -> None:
    if not comparisons:
        return
    table = console.table("measure", "arms", "difference", "p, Holm", "paired test", "n")
    for row in comparisons[:_MOST]:
        measure = " by ".join(filter(None, (row["measure"], row.get("judge"))))
        value, low, high = (_signed(row["difference"][key]) for key in ("value", "low", "high"))
        span = f"{value} ({low} to {high})"
        table.add_row(measure, f"{row['a']} − {row['b']}", span, p_value(row["p_holm"]), row["test"], str(row["n"]))
    console.show(table)
    for row in comparisons[:_MOST]:
        if row.get("needed"):
            console.say(f"{row['measure']}, {row['a']} and {row['b']}: no difference found. {hint(row['needed'], row['n'])}")


def _cell(measured: Any) -> str:
    found = read_measure(measured)
    if found is None:
        return "none"
    write = percent if isinstance(measured, Mapping) and measured.get("unit") in _UNITS else number
    if found.unresolved:
        return f"≤ {write(found.floor)}, as rounding alone, n {found.n}"
    if found.low is None or found.high is None:
        return write(found.value)
    return f"{write(found.value)} ({write(found.low)} to {write(found.high)}), n {found.n}"


def _signed(value: float) -> str:
    """Return a difference; what a bootstrap's rounding leaves of nothing is nothing."""
    return "0" if abs(value) < 1e-12 else number(value)
