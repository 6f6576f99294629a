"""The tables of the report as plain rows of text; the template only lays them out and escapes them."""

from collections.abc import Iterable
from dataclasses import dataclass

from resect.report.read import RunFolder, ordered
from resect.report.sentences import kl_ratio
from resect.report.values import MISSING, Json, Measure, count, finite, hover, interval, number, p_value, percent, read_measure, told, write

MEASURES = {
    "refusal_rate": "refusals, harmful",
    "benign_refusal_rate": "refusals, benign",
    "kl_first_token": "KL first token, nats",
    "kl_tokens": "KL per token over k tokens, nats",
    "recovery": "recovery",
}


@dataclass(frozen=True)
class Cell:
    """One cell: the value, a smaller line under it, the text on hover, and whether it stands out."""

    value: str
    small: str = ""
    hover: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Column names and rows; the first column names the row, `notes` are arms set apart (controls)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def cell(measured: Measure | None, *, measure: str, name: str = "") -> Cell:
    """Return a measure with its interval and n under it, or in words that it was not measured."""
    if measured is None:
        return Cell(MISSING)
    small = f"{interval(measured, measure=measure)} · {count(measured.n)}"
    return Cell(told(measured, measure=measure), small, hover(name or measure, measured, measure=measure))


def plain(values: Iterable[object]) -> tuple[Cell, ...]:
    """Return a row of cells from cells and anything that has a text."""
    return tuple(value if isinstance(value, Cell) else Cell(str(value)) for value in values)


def arm_cell(run: RunFolder, arm: str) -> Cell:
    """Return the name of an arm, marked where it is a control, with its method on hover."""
    entry = run.part("arms").get(arm, {})
    return Cell(arm, "control" if entry.get("control") else "", entry.get("method") or "")


def tiles(run: RunFolder) -> list[tuple[str, Cell]]:
    """Return the key numbers under the headline, each with its interval and n."""
    shown = []
    arm = "sra" if "sra" in run.arms else run.arms[-1]
    for name, title in (("refusal_rate", "harmful prompts refused"), ("benign_refusal_rate", "benign prompts refused")):
        before, after = run.measure("base", name), run.measure(arm, name)
        made = cell(after, measure=name, name=arm)
        start = write(before.value, measure=name) if before else MISSING
        shown.append((f"{title}, base\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{arm}", Cell(f"{start} → {made.value}", made.small, made.hover)))
    shown.append((f"first-token KL of {arm}, nats", cell(run.measure(arm, "kl_first_token"), measure="kl_first_token", name=arm)))
    recovered = run.measure(arm, "recovery")
    twinless = Cell(MISSING, "there is no helpful twin to compare with")
    shown.append((f"recovery of the twin's answers, {arm}", cell(recovered, measure="recovery", name=arm) if recovered else twinless))
    return shown


def matched(run: RunFolder) -> Table:
    """Return each arm's KL read off its curve at equal refusal, with the ratio to sra."""
    part = run.part("matched")
    found = {arm: finite(entry.get("kl")) for arm, entry in part.get("arms", {}).items()}
    best = min((value for value in found.values() if value is not None), default=None)
    rows = []
    for arm in ordered(found):
        entry = part["arms"][arm]
        if arm == "base":
            continue
        kl, ratio = found[arm], None if arm == "sra" else kl_ratio(run, over=arm, under="sra")
        value = (
            Cell(number(kl), "lowest" if kl == best else "", strong=kl == best)
            if kl is not None
            else Cell("none", entry.get("note") or "no value")
        )
        over = Cell(f"{number(ratio.value)} ×", interval(ratio, measure="ratio")) if ratio else Cell("1 ×" if arm == "sra" else "not given")
        rows.append(
            (
                arm_cell(run, arm),
                value,
                over,
                Cell(number(strength)) if (strength := finite(entry.get("strength"))) is not None else Cell("none"),
            )
        )
    return Table(("arm", "KL at matched refusal, nats", "KL over KL of sra", "strength γ there"), tuple(rows))


def sources(run: RunFolder) -> Table | None:
    """Return each arm's best validation candidate with per-layer directions and with one layer's, None where it was not recorded."""
    part = run.part("sources")
    rows = [
        (arm_cell(run, arm), *(cell for name in ("per_layer", "single") for cell in _source_cells(part[arm].get(name))))
        for arm in ordered(part)
    ]
    columns = ("arm", "each layer's own: KL, nats", "refused", "one layer's: KL, nats", "refused")
    return Table(columns, tuple(rows)) if rows else None


def _source_cells(row: Json | None) -> tuple[Cell, Cell]:
    if row is None:
        return Cell("not tried"), Cell("not tried")
    if row.get("dropped"):
        refusals, prompts = row["dropped"]
        return Cell("dropped early"), Cell(f"{refusals} of the first {prompts}")
    place = f"strength {row['gamma']:g}" + ("" if row["source"] is None else f", layer {row['source']}")
    return Cell(number(finite(row["kl"])), place), Cell(percent(finite(row["refusal"])))


def other_ratios(run: RunFolder) -> list[str]:
    """Return the matched ratios that are not against sra, as sentences."""
    lines = []
    for entry in run.part("matched").get("ratios") or []:
        if "sra" not in (entry["a"], entry["b"]):
            ratio = read_measure(entry.get("kl_ratio"))
            value = f"{number(ratio.value)} × ({interval(ratio, measure='ratio')})" if ratio else "not given"
            lines.append(f"KL of {entry['a']} over KL of {entry['b']}: {value}")
    return lines


def decomposition(run: RunFolder) -> Table | None:
    """Return the two by two of cleaning and strength rule, None where it was not computed."""
    rows = run.part("decomposition").get("rows") or []
    if not rows:
        return None
    body = [
        (
            arm_cell(run, row["arm"]),
            "yes" if row["cleaned"] else "no",
            row["rule"],
            "none" if finite(row.get("kl_matched")) is None else number(row["kl_matched"]),
        )
        for row in rows
    ]
    return Table(("arm", "cleaned", "strength rule", "KL at matched refusal, nats"), tuple(map(plain, body)))


def every_number(run: RunFolder) -> Table:
    """Return all measures of all arms with interval and n."""
    capabilities = run.capabilities()
    rows = []
    for arm in run.arms:
        cells = [cell(run.measure(arm, name), measure=name, name=f"{arm}, {title}") for name, title in MEASURES.items()]
        cells += [cell(run.perplexity(arm, name), measure="perplexity", name=f"{arm}, perplexity on {name}") for name in capabilities]
        rows.append((arm_cell(run, arm), *cells))
    return Table(("arm", *MEASURES.values(), *(f"perplexity {name}" for name in capabilities)), tuple(rows))


def comparisons(run: RunFolder) -> Table | None:
    """Return the paired tests between arms, None where none was made."""
    rows = []
    for entry in run.evaluation.get("comparisons") or []:
        measure = str(entry["measure"])
        difference = read_measure(entry.get("difference"))
        holm = finite(entry.get("p_holm"))
        rows.append(
            plain(
                (
                    MEASURES.get(measure, measure),
                    f"{entry['a']} − {entry['b']}",
                    Cell(write(difference.value, measure=measure), interval(difference, measure=measure)) if difference else MISSING,
                    p_value(entry.get("p")),
                    Cell(p_value(holm), _needed(entry), strong=holm is not None and holm < 0.05),
                    entry.get("test", ""),
                    "unknown" if entry.get("n") is None else f"{entry['n']:,}",
                )
            )
        )
    return Table(("measure", "arms", "difference", "p", "p, Holm", "paired test", "n"), tuple(rows)) if rows else None


def _needed(entry: Json) -> str:
    """Return how many prompts it takes to see what was not seen."""
    return f"2 points need n {entry['needed']:,}" if entry.get("needed") else ""


def split(run: RunFolder) -> Table | None:
    """Return KL over k tokens with its part about refusing and its part about answering, None where it was not split."""
    rows = [
        (
            arm_cell(run, arm),
            cell(run.measure(arm, "kl_tokens"), measure="kl_tokens"),
            *(cell(read_measure(entry.get(part)), measure="kl_tokens") for part in ("refusing", "answering")),
        )
        for arm, entry in run.by_arm("drift_split").items()
    ]
    return Table(("arm", "KL per token, nats", "about refusing", "about answering"), tuple(rows)) if rows else None


def quantiles(run: RunFolder) -> Table | None:
    """Return the quantiles of first-token KL over prompts, None where they were not computed."""
    keys = ("median", "p90", "p99", "max")
    rows = [
        (
            arm_cell(run, arm),
            *(Cell(number(finite(entry.get(key)))) for key in keys),
            cell(read_measure(entry.get("top1_flips")), measure="top1_flips"),
        )
        for arm, entry in run.by_arm("drift_quantiles").items()
    ]
    return Table(("arm", "median, nats", "90 %", "99 %", "largest", "top token changed"), tuple(rows)) if rows else None


def passes(run: RunFolder) -> Table | None:
    """Return what each pass measured, None where there was no pass."""
    rows = [
        plain(
            (
                entry["pass"],
                cell(read_measure(entry.get("refusal_rate")), measure="refusal_rate"),
                cell(read_measure(entry.get("kl_first_token")), measure="kl_first_token"),
                cell(read_measure(entry.get("recovery")), measure="recovery"),
                number(finite(entry.get("r_squared"))),
                entry.get("hard_negatives", MISSING),
                entry.get("stopped") or "",
            )
        )
        for entry in run.rows("passes")
    ]
    return (
        Table(("pass", "refusals", "KL first token, nats", "recovery", "R²", "hard negatives", "stopped because"), tuple(rows))
        if rows
        else None
    )


def _kappa(entry: Json) -> str:
    """Return kappa with its interval, where the run has one."""
    value, low, high = (finite(entry.get(key)) for key in ("kappa", "kappa_low", "kappa_high"))
    if value is None:
        return "undefined"
    text = f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"
    return text.replace("-", "−")


def judges(run: RunFolder) -> Table | None:
    """Return the judges side by side, None where there was only one."""
    rows = [
        (
            arm_cell(run, arm),
            cell(run.measure(arm, "refusal_rate"), measure="refusal_rate"),
            cell(read_measure(entry.get("refusal_rate_log_odds")), measure="refusal_rate"),
            cell(read_measure(entry.get("refusal_rate_echo")), measure="refusal_rate"),
            Cell(percent(finite(entry.get("agreement"))), count(entry.get("n"))),
            Cell(_kappa(entry)),
        )
        for arm, entry in run.by_arm("judges").items()
    ]
    head = ("arm", "refusals by markers", "by token log-odds", "echo of the base's refusals", "agreement of the first two", "kappa")
    return Table(head, tuple(rows)) if rows else None
