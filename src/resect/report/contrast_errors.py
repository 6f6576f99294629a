"""The error bars of the contrast report as plain rows of text: one line a baseline, and every layer of every baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from resect.report.contrast_read import ContrastRun
from resect.report.tables import Cell, Table, plain
from resect.report.values import finite, number, p_value

SURE = 0.05


def summary(run: ContrastRun) -> Table | None:
    """Return a line for each baseline: at how many layers it is told from chance, and its error where the error is least."""
    part = run.part("geometry")
    rows = []
    for name, bars in (part.get("errors") or {}).items():
        layer = min(range(len(bars["cone"])), key=bars["cone"].__getitem__)
        told = sum(p < SURE for p in bars["p_holm"])
        rows.append(plain((name, f"{part['rows'][name]}", f"{told} of {len(bars['cone'])}", *_at(bars, layer, (f"layer {layer}",)))))
    return Table(("baseline", "benign prompts", "layers told from chance", "narrowest at", *_heads(run)), tuple(rows)) if rows else None


def every_layer(run: ContrastRun) -> Table | None:
    """Return a line for each baseline and layer."""
    errors = run.part("geometry").get("errors") or {}
    rows = [plain(_at(bars, layer, (name, str(layer)))) for name, bars in errors.items() for layer in range(len(bars["cone"]))]
    return Table(("baseline", "layer", *_heads(run)), tuple(rows)) if rows else None


def _heads(run: ContrastRun) -> tuple[str, ...]:
    needed = f"prompts for {run.part('geometry').get('angle', 0):g}°"
    return ("angle of error", "95 % cone", "signal", "split-half cosine", "along held-out pairs", "p, Holm over layers", needed)


def _at(bars: Mapping[str, Any], layer: int, named: Sequence[str]) -> tuple[object, ...]:
    needed = bars["prompts_needed"][layer]
    return (
        *named,
        _span(bars["angle"], layer),
        f"{number(finite(bars['cone'][layer]))}°",
        _span(bars["signal"], layer),
        _span(bars["split_half"], layer),
        _span(bars["held_out"], layer) if bars["held_out"] else Cell("no pairs"),
        Cell(p_value(bars["p_holm"][layer]), f"alone {p_value(bars['p_value'][layer])}", strong=bars["p_holm"][layer] < SURE),
        "no signal" if needed is None else f"{needed:,}",
    )


def _span(interval: Mapping[str, Sequence[float]], layer: int) -> Cell:
    value, low, high = (number(finite(interval[end][layer])) for end in ("value", "low", "high"))
    return Cell(value, f"{low} to {high}")
