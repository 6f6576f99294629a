"""Many organisms, one table: does cleaning pay, against which baseline, and can it be told beforehand?

    python benchmarks/zoo.py --folder runs/zoo --jobs 2            # everything, resumable
    python benchmarks/zoo.py --folder runs/zoo --only seeds        # one group: seeds, entanglement, architectures, overwriting
    python benchmarks/zoo.py --again                               # tables and charts from benchmarks/results/zoo.json, nothing measured

Trains the organisms (the shipped one is seed 0), runs the SRA study on each in two settings: `any` (validation chooses between each
layer's own direction and one layer's direction everywhere) and `per_layer` (each layer its own: the paper's setting). Prints a table,
writes benchmarks/results/zoo.json and docs/figures/*.svg; the last line is JSON.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import zoo_summary

from resect.config import ARMS

RESULTS = Path(__file__).parent / "results" / "zoo.json"
SIZES = {"validation_prompts": 40, "test_prompts": 96, "lam_sweep": []}
COMPARED = [arm for arm in ARMS if arm != "oblique"]
SETTINGS: dict[str, dict[str, Any]] = {
    "any": {"arms": COMPARED, "passes": 2, **SIZES},
    "per_layer": {"source": "per_layer", "arms": COMPARED, "passes": 1, "ceilings": False, **SIZES},
}


@dataclass(frozen=True)
class Member:
    """One organism of the zoo."""

    group: str
    architecture: str = "qwen3"
    seed: int = 0
    entanglement: float = 0.7
    tuning: str = "gated"

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.tuning}-e{self.entanglement:g}-s{self.seed}"


def members(seeds: int) -> list[Member]:
    """Return the zoo; the seeds group comes first."""
    found = [Member("seeds", seed=s) for s in range(seeds)]
    found += [Member("architectures", architecture=a) for a in ("gemma3", "ministral3", "qwen3_moe", "qwen3_5")]
    found += [Member("entanglement", seed=0, entanglement=e) for e in (0.0, 0.35, 1.0)]
    found += [Member("overwriting", seed=0, tuning="overwriting")]
    found += [Member("entanglement", seed=s, entanglement=e) for s in (1, 2) for e in (0.0, 0.35, 1.0)]
    return found


def measure(member: Member, folder: Path) -> dict[str, Any]:
    """Train the organism if it is not there, run both settings, and return its row."""
    import torch

    from resect.commands.console import quiet_libraries
    from resect.commands.study import ORGANISM_SETTINGS
    from resect.config import make_config
    from resect.organism.shipped import is_organism, load_organism
    from resect.organism.training import train_organism
    from resect.run import run_sra
    from resect.studies.inputs import from_organism

    torch.set_num_threads(1)
    quiet_libraries()
    place = folder / "organisms" / member.name
    default = member.name == Member("seeds").name
    if not default and not is_organism(place):
        options = {k: v for k, v in asdict(member).items() if k != "group"}
        train_organism(place, **options)
    organism = load_organism("default" if default else place)
    row: dict[str, Any] = {**asdict(member), "name": member.name, "quality": organism.quality, "settings": {}}
    for name, changes in SETTINGS.items():
        config = make_config(ORGANISM_SETTINGS | changes)
        result = run_sra(from_organism(organism, config=config), config, folder / "studies" / member.name / name)
        row["settings"][name] = zoo_summary.figures(result.evaluation, result.study)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=["seeds", "entanglement", "architectures", "overwriting"])
    parser.add_argument("--again", action="store_true", help="write tables and charts from the stored results")
    options = parser.parse_args()
    if options.again:
        publish(json.loads(RESULTS.read_text(encoding="utf-8"))["organisms"])
        return
    wanted = [m for m in members(options.seeds) if options.only in (None, m.group)]
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measure, m, options.folder): m for m in wanted}
        for job in as_completed(jobs):
            rows.append(job.result())
            print(f"{len(rows)}/{len(wanted)} {jobs[job].name}", flush=True)
    order = {m.name: i for i, m in enumerate(wanted)}
    rows.sort(key=lambda row: order[row["name"]])
    summary = publish(rows) if options.only is None else zoo_summary.summarise(rows)
    print(zoo_summary.table(rows))
    print(zoo_summary.sentences(summary))
    print(json.dumps(summary, sort_keys=True))


def publish(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write results/zoo.json, the tables of docs/results.md and the charts, and return the summary."""
    summary = zoo_summary.summarise(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"summary": summary, "organisms": rows}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    docs = Path(__file__).parents[1] / "docs"
    zoo_summary.write_results(docs / "results.md", rows, summary)
    zoo_summary.draw(rows, docs / "figures")
    return summary


if __name__ == "__main__":
    main()
