"""The tables of the contrast report as plain rows of text; the template only lays them out and escapes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resect.report import contrast_paper as paper
from resect.report.contrast_read import ContrastRun
from resect.report.tables import Cell, Table, cell, plain
from resect.report.theme import BINS
from resect.report.values import count, finite, interval, number, p_value, percent, read_measure

MEASURES = ("refusal_rate", "benign_refusal_rate", "kl_first_token", "kl_tokens", "kl_tokens_top100", "recovery")
SHOWN_LAYERS = 4
"""Layers in the tables of R by layer and weight, as in the paper."""


@dataclass(frozen=True)
class Beside:
    """A table of the paper regenerated for the model at hand, with the paper's own figures."""

    title: str
    caption: str
    ours: Table | None
    theirs: Table


def results(run: ContrastRun, *, controls: bool, place: str) -> Table:
    """Return every arm's cell, chosen anywhere (`any`) or among those that edit one layer (`single`), and its test figures."""
    rows = []
    for arm in run.arms:
        entry = run.part("arms")[arm]
        if bool(entry["control"]) == controls:
            measured, chosen = run.part("evaluation")[arm][place], entry["chosen"][place]
            rows.append(
                plain(
                    (
                        Cell(arm, _doubts(entry, chosen), entry["label"]),
                        Cell(places(chosen), f"weight {chosen['weight']:g}, {entry['count']} directions"),
                        *(cell(read_measure(measured.get(name)), measure=name, name=f"{arm}, {name}") for name in MEASURES),
                    )
                )
            )
    head = ("arm", "edited", "refused", "benign refused", "KL first token", "KL tokens", "KL of the top 100", "recovery")
    return Table(head, tuple(rows))


def _doubts(entry: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    same = f"the same edit as {entry['same_as']}" if entry.get("same_as") else ""
    return "; ".join(filter(None, (same, "" if chosen["feasible"] else "no cell works on validation")))


def places(chosen: Mapping[str, Any]) -> str:
    """Return the edited layers in words."""
    layers = chosen["layers"]
    return (
        "all layers"
        if chosen["kind"] == "all"
        else f"layer {layers[0]}"
        if len(layers) == 1
        else f"layers {' and '.join(map(str, layers))}"
    )


def protocol(run: ContrastRun) -> Table:
    """Return what the paper's protocol says of every arm that was read by it."""
    rows = []
    for entry in run.part("protocol")["arms"]:
        zero = ", ".join(map(str, entry["layers_at_zero"])) or "none"
        rows.append(
            plain(
                (
                    entry["arm"],
                    Cell(f"{entry['least']} of {entry['panel']}", f"base {entry['base']}"),
                    Cell("yes" if entry["functional"] else "no", strong=entry["functional"]),
                    Cell("yes" if entry["successful"] else "no", strong=entry["successful"]),
                    zero,
                    Cell("yes" if entry["successful_anywhere"] else "no", strong=entry["successful_anywhere"]),
                )
            )
        )
    head = ("arm", "least R, one layer", "functional", "successful", "layers with R = 0", "successful with pairs or all layers")
    return Table(head, tuple(rows))


def from_paper(run: ContrastRun) -> list[Beside]:
    """Return the paper's four tables for this model, beside the paper's figures."""
    pick = {what: _arm(run, *what) for what in (("unmatched", "som"), ("matched", "som"), ("matched", "som_svd"))}
    names = {what: arm or "/".join(what) for what, arm in pick.items()}
    unmatched, matched, svd = pick.values()
    heads = ("layer", *(f"w {w:g}" for w in paper.WEIGHTS))
    return [
        Beside(
            f"1. Layers with R = 0: {names['unmatched', 'som']}",
            "Least weight at which none of the panel refuses, one layer edited at a time; efficiency is the fall of R per unit of KL.",
            None if unmatched is None else _zero_layers(run, unmatched),
            Table(
                ("layer", "least w", "KL", "efficiency"),
                tuple(plain((str(a), f"{b:g}", number(c), f"{d:,}")) for a, b, c, d in paper.UNMATCHED),
            ),
        ),
        Beside(
            f"2. R by layer and weight: {names['matched', 'som']}",
            "Refusals out of the panel, at the four layers with the lowest R.",
            None if matched is None else _by_weight(run, matched),
            Table(heads, tuple(plain((str(layer), *map(str, rs))) for layer, rs in paper.MATCHED.items())),
        ),
        Beside(
            f"3. R by layer and weight: {names['matched', 'som_svd']}",
            "As table 2, the directions made orthogonal by SVD.",
            None if svd is None else _by_weight(run, svd),
            Table(heads, tuple(plain((str(layer), *map(str, rs))) for layer, rs in paper.MATCHED_SVD.items())),
        ),
        Beside(
            "4. Capture of held-out pairs",
            "Of differences within held-out pairs, means over pairs: largest |cosine| with one direction (best) and the share of the norm "
            "inside the span of all. The paper does not print its formula.",
            _capture(run),
            Table(
                ("method", "mean", "peak, layer 9", "layers 11 to 23"),
                tuple(plain((a, f"{b:.3f}", f"{c:.3f}", d)) for a, b, c, d in paper.CAPTURE),
            ),
        ),
    ]


def _arm(run: ContrastRun, baseline: str, method: str) -> str | None:
    """Return the arm of the paper, or where that method was not run the baseline's first arm, None if the baseline was not run."""
    mine = [arm for arm in run.plain if run.part("arms")[arm]["baseline"] == baseline]
    return next((arm for arm in mine if run.part("arms")[arm]["method"] == method), mine[0] if mine and method == "som" else None)


def _zero_layers(run: ContrastRun, arm: str) -> Table:
    rows = []
    single = run.cells(arm, "single")
    for layer in sorted({c["layers"][0] for c in single if c.get("r") == 0}):
        best = min((c for c in single if c["layers"] == [layer] and c["r"] == 0), key=lambda c: c["weight"])
        rows.append(plain((str(layer), f"{best['weight']:g}", number(best["kl"]), number(finite(best["efficiency"])))))
    return Table(("layer", "least w", "KL", "efficiency"), tuple(rows or [plain(("no layer", "", "", ""))]))


def _by_weight(run: ContrastRun, arm: str) -> Table:
    single = run.cells(arm, "single")
    weights = sorted({c["weight"] for c in single})
    r = {(c["layers"][0], c["weight"]): c["r"] for c in single}
    layers = sorted({layer for layer, _ in r}, key=lambda layer: (min(r[layer, w] for w in weights), layer))[:SHOWN_LAYERS]
    rows = [plain((str(layer), *(str(r[layer, w]) for w in weights))) for layer in layers]
    return Table(("layer", *(f"w {w:g}" for w in weights)), tuple(rows))


def _capture(run: ContrastRun) -> Table:
    rows = []
    for arm in (a for a in run.arms if a in run.part("capture")):
        found = run.part("capture")[arm]
        best, span = found["best"], found["span"]
        peak = max(range(len(span)), key=span.__getitem__)
        rows.append(
            plain(
                (
                    arm,
                    _mean(best),
                    _mean(found["best_squared"]),
                    _mean(span),
                    _mean(found["span_squared"]),
                    f"{span[peak]:.3f} (layer {peak})",
                )
            )
        )
    return Table(("arm", "best, mean over layers", "best²", "span", "span²", "peak of the span"), tuple(rows))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def matched_refusal(run: ContrastRun) -> Table:
    """Return every traced arm's KL at the matched refusal rate and the ratio to the unmatched arm of its method."""
    part = run.part("matched")
    ratios = {entry["b"]: entry for entry in part["ratios"]}
    rows = []
    for arm in (a for a in run.arms if a in part["arms"]):
        entry, ratio = part["arms"][arm], ratios.get(arm)
        measured = read_measure(ratio["kl_ratio"]) if ratio else None
        over = Cell("not given") if measured is None else Cell(f"{number(1 / measured.value)} ×", _inverse(measured.low, measured.high))
        kl = finite(entry["kl"])
        rows.append(plain((arm, Cell("none", entry["note"] or "") if kl is None else number(kl), number(finite(entry["strength"])), over)))
    return Table(("arm", "KL first token, nats", "weight there", "KL over that of unmatched"), tuple(rows))


def _inverse(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None or low == 0 else f"{number(1 / high)} to {number(1 / low)}"


def comparisons(run: ContrastRun) -> Table:
    """Return the paired tests."""
    rows = []
    for entry in run.document.get("comparisons") or []:
        difference, measure = read_measure(entry["difference"]), str(entry["measure"])
        value = Cell("–") if difference is None else Cell(_write(difference.value, measure), interval(difference, measure=measure))
        holm = finite(entry["p_holm"])
        strong = holm is not None and holm < 0.05
        pair = Cell(f"{entry['a']} − {entry['b']}", "one layer" if entry["place"] == "single" else "")
        rows.append(
            plain((pair, measure, value, p_value(entry["p"]), Cell(p_value(holm), strong=strong), entry["test"], count(entry["n"])))
        )
    return Table(("arms", "measure", "difference", "p", "p, Holm", "paired test", "n"), tuple(rows))


def _write(value: float, measure: str) -> str:
    return percent(value) if measure == "refusal_rate" else number(value)


def doses(run: ContrastRun, *, by: str) -> Table | None:
    """Return the doses by share of on-topic prompts (`share`) or by number of prompts (`n`)."""
    rows = []
    for entry in run.document.get("doses") or []:
        if (entry["share"] is not None) == (by == "share"):
            test, chosen = entry["test"], entry["chosen"]
            dose = percent(entry["share"]) if by == "share" else f"{entry['baseline']}, {entry['n']} prompts"
            figures = (cell(read_measure(test[name]), measure=name) for name in ("refusal_rate", "kl_tokens"))
            rows.append(plain((dose, Cell(places(chosen), f"weight {chosen['weight']:g}"), *figures)))
    return Table(("dose", "edited", "refused", "KL tokens"), tuple(rows)) if rows else None


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat map: what is written in it, which bin of the colour scale it has, and the text on hover."""

    text: str
    colour: int
    hover: str


@dataclass(frozen=True)
class HeatMap:
    """Refusals that an arm leaves on the screen, by place and weight."""

    arm: str
    weights: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_maps(run: ContrastRun, *, controls: bool) -> list[HeatMap]:
    """Return one heat map an arm: places down, weights across; R where responses were read, else the rate of the screen."""
    return [_heat_map(run, arm) for arm in run.arms if (arm not in run.plain) == controls]


def _heat_map(run: ContrastRun, arm: str) -> HeatMap:
    cells = run.cells(arm)
    weights = sorted({c["weight"] for c in cells})
    rows: dict[str, dict[float, HeatCell]] = {}
    for each in cells:
        rows.setdefault(_label(each), {})[each["weight"]] = _heat_cell(each, run.part("protocol")["panel"])
    return HeatMap(arm, tuple(f"{w:g}" for w in weights), tuple((name, tuple(row[w] for w in weights)) for name, row in rows.items()))


def _label(each: Mapping[str, Any]) -> str:
    return "all" if each["kind"] == "all" else "+".join(map(str, each["layers"]))


def _heat_cell(each: Mapping[str, Any], panel: int) -> HeatCell:
    half = BINS // 2
    refusal = each["r"] / panel if "r" in each else each["refusal"]
    text = str(each["r"]) if "r" in each else f"{each['refusal'] * 100:.0f}"
    words = f"R {each['r']} of {panel}{'' if each['read'] else ', not read'}; " if "r" in each else ""
    hover = f"{words}screen {percent(each['refusal'])}, KL {number(each['kl'])} nats a token, benign {percent(each['benign'])}"
    return HeatCell(text, half + round(refusal * half), hover)
