"""Does topic-matched contrast fail, when, and why: one experiment over organisms, and the page that reports it.

    python benchmarks/contrast.py --folder runs/contrast            # everything, resumable: trains, measures, writes
    python benchmarks/contrast.py --folder runs/contrast --finished # measures and reports the organisms that are trained already
    python benchmarks/contrast.py --again                           # page and figures from benchmarks/results/contrast.json

Trains three seeds x two architectures x three topic strengths (seeds that the language was never looked at with), runs every arm on
each, writes benchmarks/results/contrast.json, docs/contrast.md and docs/figures/contrast_*.svg; the last line is JSON.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import contrast_page

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "contrast.json"
SEEDS, ARCHITECTURES, TOPICS = (3, 4, 5), ("qwen3", "qwen3_5"), (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Member:
    """One organism of the experiment."""

    seed: int
    topic: float
    architecture: str

    @property
    def name(self) -> str:
        return f"{self.architecture}-t{self.topic:g}-s{self.seed}"


def members(folder: Path) -> list[Member]:
    """Return the organisms in the order of work: those that are trained already, then the cheaper architecture, seed by seed."""
    every = [Member(seed, topic, architecture) for seed in SEEDS for topic in TOPICS for architecture in ARCHITECTURES]
    return sorted(
        every, key=lambda m: (not (folder / "organisms" / m.name / "organism.json").is_file(), ARCHITECTURES.index(m.architecture))
    )


def measured(member: Member, folder: Path, *, train: bool) -> dict[str, Any] | None:
    """Return an organism's row, training it if need be; None if it is not there and training is not wanted."""
    import torch
    from contrast_measure import measure

    from resect.commands.console import quiet_libraries
    from resect.organism.shipped import is_organism, load_organism
    from resect.organism.training import train_organism
    from resect.studies.steps import Steps

    torch.set_num_threads(1)
    quiet_libraries()
    place = folder / "organisms" / member.name
    if not is_organism(place):
        if not train:
            return None
        train_organism(place, **asdict(member))
    print(f"Measuring {member.name}", flush=True)
    steps = Steps(folder / "measured")
    return steps.json(member.name, lambda: {"name": member.name, **measure(load_organism(place), folder / "measured" / member.name)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/contrast"))
    parser.add_argument("--finished", action="store_true", help="train nothing")
    parser.add_argument("--again", action="store_true", help="write the page from the stored results")
    options = parser.parse_args()
    wanted = members(options.folder)
    if options.again:
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["organisms"]
    else:
        rows = [row for member in wanted if (row := measured(member, options.folder, train=not options.finished)) is not None]
        rows.sort(key=lambda row: (row["seed"], row["architecture"], row["topic"]))
        RESULTS.write_text(json.dumps({"organisms": rows}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    summary = contrast_page.publish(rows, planned=len(wanted), seeds=len(SEEDS), docs=ROOT / "docs")
    print(json.dumps(summary, sort_keys=True))


if __name__ == "__main__":
    main()
