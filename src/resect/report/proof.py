"""The edit proof as a sentence and tables: what the run's edit did to every writer and every block, and what it left alone."""

from collections.abc import Iterable
from typing import Any

from resect.report.read import RunFolder
from resect.report.tables import Cell, Table, plain
from resect.report.values import PERCENT, Json, finite, number, percent

_ROUNDING = 1e-5


def sentence(run: RunFolder) -> str | None:
    """Return what the proof comes to, None where the run has none."""
    writers, blocks = _entries(run, "writers"), _entries(run, "blocks")
    if not run.proof:
        return None
    if not writers:
        return "The edit touches no writer."
    faults = run.proof.get("faults") or []
    if faults:
        return f"{len(faults)} faults: {' '.join(map(str, faults))}"
    gap, unlisted = _largest(writers, "gap"), _largest(blocks, "unlisted")
    leak = _largest(writers, "leak")
    leaked = f" Norm preservation leaves {percent(leak)} more than the strength says, at most." if leak > _ROUNDING else ""
    return (
        f"All {len(writers)} edited writers put out what the edit asks for (largest gap {number(gap)} of the output), and nothing else in "
        f"their blocks writes along the directions (at most {number(unlisted)} of what was there).{leaked}"
    )


def blocks(run: RunFolder) -> Table | None:
    """Return what each edited block adds along the removed directions before and after, None where the run has no proof."""
    rows = []
    for entry in _entries(run, "blocks"):
        here = [w for w in _entries(run, "writers") if w.get("layer") == entry.get("layer")]
        strengths = dict.fromkeys(number(finite(w.get("gamma"))) for w in here)
        rows.append(
            plain(
                (
                    str(entry.get("layer")),
                    ", ".join(strengths),
                    _arrow(entry, "added"),
                    _arrow(entry, "stream"),
                    _share(entry.get("unlisted")),
                )
            )
        )
    head = ("layer", "γ", "share of what the block adds", "share of the stream after it", "still added by anything unknown")
    return Table(head, tuple(rows)) if rows else None


def writers(run: RunFolder) -> Table | None:
    """Return every edited writer with what was asked and what was measured, None where the run has no proof."""
    rows = []
    for entry in _entries(run, "writers"):
        left, expected = (max((finite(v) or 0.0 for v in entry.get(key) or []), default=None) for key in ("left", "expected_left"))
        rows.append(
            plain(
                (
                    str(entry.get("writer")),
                    number(finite(entry.get("gamma"))),
                    Cell(_share(entry.get("change")), f"asked {_share(entry.get('expected_change'))}"),
                    Cell(_share(left), f"asked {_share(expected)}"),
                    _share(entry.get("gap")),
                )
            )
        )
    return Table(("writer", "γ", "change of its output", "component left", "gap"), tuple(rows)) if rows else None


def untouched(run: RunFolder) -> Table | None:
    """Return what the edit left alone and why, one row a reason, None where that is nothing or the run has no proof."""
    reasons: dict[str, list[str]] = {}
    for entry in _entries(run, "untouched"):
        reasons.setdefault(str(entry.get("reason")), []).append(str(entry.get("name")))
    rows = [plain((reason, ", ".join(names))) for reason, names in reasons.items()]
    return Table(("why", "left alone"), tuple(rows)) if rows else None


def _entries(run: RunFolder, name: str) -> list[Json]:
    return list(run.proof.get(name) or [])


def _largest(entries: Iterable[Json], name: str) -> float:
    return max((finite(entry.get(name)) or 0.0 for entry in entries), default=0.0)


def _arrow(entry: Json, what: str) -> str:
    return f"{_share(entry.get(f'{what}_before'))} → {_share(entry.get(f'{what}_after'))}"


def _share(value: Any) -> str:
    """Return a share as a percentage; below a thousandth of a percent it is rounding, and said to be."""
    share = finite(value)
    return f"<\N{NO-BREAK SPACE}0.001{PERCENT}" if share is not None and 0 < share < _ROUNDING else percent(share)
