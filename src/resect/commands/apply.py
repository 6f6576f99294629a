"""`resect apply`: bake an edit into the weights, prove it, and save an ordinary Hugging Face folder."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from resect.commands import console
from resect.commands.card import model_card
from resect.commands.edits import expected_left, from_directions, from_run
from resect.commands.inputs import open_model
from resect.edit.bake import BakeReport, bake
from resect.edit.save import save_edited
from resect.errors import UserError
from resect.models.writers import find_writers


def apply(
    model: str, *, run: Path | None, directions: Path | None, made: dict[str, Any], out: Path, load: dict[str, Any], as_json: bool
) -> None:
    """Save the edited model; `made` is strength, layers and source of a directions file, a run has its own."""
    _check(run, directions, made, out)
    console.quiet_libraries()
    with console.progress("apply", total=4) as step:
        step("loading")
        loaded = open_model(model, **load)
        step("writers")
        writers = find_writers(loaded)
        chosen: dict[str, Any] = made | {"strength": 1.0 if made["strength"] is None else made["strength"]}
        edit = from_run(run, loaded) if run else from_directions(_given(directions), writers, loaded, **chosen)
        step("baking")
        report = bake(loaded, writers, edit.plan)
        step("saving")
        save_edited(loaded, out, card=model_card(loaded, edit, report))
    if as_json:
        console.show_json({"out": str(out), "edit": edit.sentence, "notes": list(edit.notes), **_proof(report)})
        return
    console.show(_table(report))
    for item in report.untouched:
        console.say(f"Not touched: {item.writer}: {item.reason}")
    console.say(f"Edited model: {out}")


def _check(run: Path | None, directions: Path | None, made: dict[str, Any], out: Path) -> None:
    if (run is None) == (directions is None):
        raise UserError("Name the edit: either --directions FILE or --edit RUN, and not both.")
    given = [name for name, value in made.items() if value is not None]
    if run is not None and given:
        there = given[0].replace("layers", "window")
        raise UserError(f"--{given[0]} goes with --directions; the edit of a run has its own: change it with resect edit {run} --{there} …")
    # The same check stands at the end of the work, in `save_edited`; here it costs nothing.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder, and nothing is overwritten; choose another --out.")


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


def _proof(report: BakeReport) -> dict[str, Any]:
    changes = [{**asdict(change), "expected_left": expected_left(change.gamma)} for change in report.changes]
    return {"changes": changes, "untouched": [asdict(item) for item in report.untouched]}


def _table(report: BakeReport) -> Table:
    table = console.table(
        "writer",
        "parameters",
        "γ",
        "change",
        "left, expected",
        "measured",
        title="Edit proof: ‖W′ − W‖ / ‖W‖, and the share of the component that is left",
    )
    for row in _rows(report):
        table.add_row(*row)
    return table


def _rows(report: BakeReport) -> Iterator[tuple[str, ...]]:
    for writer, group in groupby(report.changes, key=lambda change: change.writer):
        changes = list(group)
        gamma = changes[0].gamma
        left = max(share for change in changes for share in change.left)
        yield (
            writer,
            str(len(changes)),
            f"{gamma:.3g}",
            f"{max(c.change for c in changes):.2%}",
            f"{expected_left(gamma):.3g}",
            f"{left:.3g}",
        )
