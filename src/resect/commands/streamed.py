"""`resect apply` on a checkpoint that is not loaded: the edit goes from disk to disk."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from resect.artifacts import dump_json
from resect.commands import console
from resect.commands.card import Subject, model_card
from resect.commands.edits import Edit, Made, from_directions, from_run, given
from resect.edit.copies import Copies
from resect.edit.output import check_out
from resect.edit.proof import FILE, FORMAT
from resect.edit.stream import StreamReport, stream
from resect.models.blockwise import skeleton_writers
from resect.models.skeleton import Skeleton, open_skeleton
from resect.organism.shipped import names_organism


def is_possible(model: str, made: Made, load: Mapping[str, Any]) -> bool:
    """Return whether the edit can go from disk to disk: no other dtype, no embeddings, nothing that has to run on a device or as code."""
    plain = {"dtype": "auto", "device": "auto", "trust_remote_code": False}
    return not names_organism(model) and made.embeddings is None and all(load[name] == value for name, value in plain.items())


def apply(
    model: str,
    *,
    run: Path | None,
    directions: Path | None,
    made: Made,
    out: Path,
    revision: str | None,
    copies: Copies | None,
    as_json: bool,
) -> None:
    """Save the edited checkpoint with its proof: of `run` if there is one, else of the directions file."""
    skeleton = open_skeleton(model, revision=revision)
    check_out(skeleton.checkpoint.folder, out)
    with console.progress("apply", total=2 + len(skeleton.checkpoint.shards)) as step:
        step("writers")
        writers = skeleton_writers(skeleton)
        edit = from_run(run, skeleton) if run else from_directions(given(directions), writers, skeleton, made)

        def described(report: StreamReport) -> dict[str, str]:
            card = model_card(_subject(skeleton, report, known=run is not None), edit, form="baked")
            return {"README.md": card, FILE: dump_json(_document(skeleton, edit, report, known=run is not None), indent=2) + "\n"}

        report = stream(skeleton, edit.plan, out, writers=writers, describe=described, copies=copies, step=step)
        step("saved")
    if as_json:
        document = _document(skeleton, edit, report, known=run is not None)
        console.show_json({"out": str(out), "edit": edit.sentence, "notes": list(edit.notes), **document})
        return
    console.show(_table(report))
    for item in report.untouched:
        console.say(f"Not touched: {item.name}: {item.reason}")
    console.say(f"Edited model: {out}")


def _document(skeleton: Skeleton, edit: Edit, report: StreamReport, *, known: bool) -> dict[str, Any]:
    """Return the proof; nothing ran, so it tells of parameters and not of outputs."""
    kept = all(item.preserve == "nothing" for item in edit.plan.edits)
    changes = [
        asdict(change) | {"expected_change": wanted if kept else None, "expected_left": abs(1 - change.gamma) if kept else None}
        for change, wanted in zip(report.changes, report.expected, strict=True)
    ]
    parts = {"writers": [], "blocks": [], "faults": [], "untouched": [asdict(item) for item in report.untouched], "changes": changes}
    fingerprint = skeleton.fingerprint if known else None
    return {"format": FORMAT, "form": "streamed", "model": skeleton.name, "model_fingerprint": fingerprint, **parts}


def _subject(skeleton: Skeleton, report: StreamReport, *, known: bool) -> Subject:
    return Subject(
        name=skeleton.name,
        fingerprint=skeleton.fingerprint if known else None,
        network=type(skeleton.network).__name__,
        blocks=len(skeleton.blocks),
        writers=len({change.writer for change in report.changes}),
        untouched=len(report.untouched),
        left=tuple(share for change in report.changes for share in change.left),
    )


def _table(report: StreamReport) -> Table:
    title = "Edit proof: change of each parameter, ‖W′ − W‖ / ‖W‖, and the share of the component that is left, as read back"
    table = console.table("parameter", "γ", "change, expected", "measured", "left, |1 − γ|", "measured", title=title)
    for change, wanted in zip(report.changes, report.expected, strict=True):
        left = max(change.left, default=0.0)
        table.add_row(
            change.name, f"{change.gamma:.3g}", f"{wanted:.2%}", f"{change.change:.2%}", f"{abs(1 - change.gamma):.3g}", f"{left:.3g}"
        )
    return table
