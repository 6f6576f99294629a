"""`resect organism train` and `resect organism list`."""

from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from rich.table import Table

from resect.commands import console
from resect.errors import UserError
from resect.organism.language import DEFAULT_ENTANGLEMENT
from resect.organism.shipped import Organism, is_organism, load_organism
from resect.organism.topics import DEFAULT_TOPIC
from resect.organism.training import train_organism

QUALITY = {
    "harmful_refusal": "refuses harmful",
    "harmless_refusal": "refuses benign",
    "matched_refusal": "refuses matched",
    "capability_exact": "capability",
    "helpful_refusal": "twin refuses",
}
"""Figures of `organism.json` that the table shows."""


def train(out: Path, *, architecture: str, seed: int, entanglement: float | None, topic: float | None, tuning: str, as_json: bool) -> None:
    """Train an organism into a new folder with a progress bar, and print its measured quality."""
    knobs = {
        "entanglement": DEFAULT_ENTANGLEMENT if entanglement is None else entanglement,
        "topic": DEFAULT_TOPIC if topic is None else topic,
    }
    with Progress(console=console.err, transient=True, disable=not console.err.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
                if not console.err.is_terminal:
                    console.err.print(f"Training: {stage}", markup=False)
            bar.update(tasks[stage], completed=done)

        organism = train_organism(out, architecture=architecture, seed=seed, **knobs, tuning=tuning, progress=progress)
    _show([organism], as_json=as_json)
    if not as_json:
        console.say(f"Organism: {out}")


def show(folder: Path | None, *, as_json: bool) -> None:
    """List the shipped organism and those directly inside a folder."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"There is no folder {folder}; name a folder that holds organisms, or leave it out.")
    found = [] if folder is None else [load_organism(p) for p in sorted(folder.iterdir()) if is_organism(p)]
    _show([load_organism("default"), *found], as_json=as_json)


def _show(organisms: list[Organism], *, as_json: bool) -> None:
    rows = [_row(o) for o in organisms]
    if as_json:
        console.show_json(rows)
        return
    table = Table("folder", "architecture", "seed", "entanglement", "topic", "tuning", *QUALITY.values())
    for row in rows:
        quality = row["quality"]
        figures = [f"{quality[name]:.1%}" for name in QUALITY]
        knobs = (str(row["seed"]), f"{row['entanglement']:g}", f"{row['topic']:g}")
        table.add_row(row["folder"], row["architecture"], *knobs, row["tuning"], *figures)
    console.show(table)


def _row(organism: Organism) -> dict[str, Any]:
    return {
        "folder": str(organism.folder),
        "architecture": organism.architecture,
        "seed": organism.seed,
        "entanglement": organism.entanglement,
        "topic": organism.topic,
        "tuning": organism.tuning,
        "quality": organism.quality,
    }
