"""Which architectures resect can edit exactly: every family of the installed transformers, tiny and random.

    python benchmarks/coverage.py --jobs 2                 # everything; rewrites results/coverage.json and docs/architectures.md
    python benchmarks/coverage.py --only qwen3 gemma3n     # some families, nothing is written; with --over, over their rows
    python benchmarks/coverage.py --peer                   # the walk, then the peer tool on the same networks (peer_coverage.py)

Needs timm for three families with its towers (pip install timm); without it they count as not built.
Each family runs in a process of its own with a time and memory limit. Prints a table and counts, the last line is JSON.
"""

import argparse
import json
import resource
import time
import warnings
from collections import Counter
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import coverage_page
import families
import family_check
import peer_coverage
import peer_environment
import torch
import transformers

MEMORY = 6 << 30
PROCESSES = get_context("fork")  # the libraries are imported once


def work(name: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send(family_check.check(name))


def walk(names: list[str], *, jobs: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row for every family, in the order of the names; a crash or a hang is a row as well."""
    waiting, running, rows = list(names), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            here, there = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(target=work, args=(waiting[0], there), daemon=True)
            process.start()
            there.close()
            running[waiting.pop(0)] = (process, here, time.monotonic())
        for name, (process, pipe, start) in list(running.items()):
            row = _row(name, process, pipe, late=time.monotonic() - start > seconds)
            if row is not None:
                rows[name] = row
                process.kill()
                process.join()
                del running[name]
                print(f"{len(rows)}/{len(names)} {name}: {row['status']}", flush=True)
        time.sleep(0.02)
    return [rows[name] for name in names]


def _row(name: str, process: Any, pipe: Connection, *, late: bool) -> dict[str, Any] | None:
    try:
        if pipe.poll():
            return pipe.recv()
    except EOFError:
        process.join()
        return _lost(name, f"the process ended with code {process.exitcode}")
    return _lost(name, "took too long") if late else None


def _lost(name: str, reason: str) -> dict[str, Any]:
    return asdict(family_check.Row(name, families.recipe(name), status="failed", reason=reason))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    built = len(rows) - counts["not built"]
    adapters = sum(row["status"] == "passed" and row["forms"].get("adapter") == "passed" for row in rows)
    found = {"attempted": len(rows), "built": built, "passed": counts["passed"], "adapters": adapters}
    return found | {"refused": counts["refused"], "failed": counts["failed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=families.names())
    parser.add_argument("--over", action="store_true", help="with --only: write these rows over those in the results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=90, help="time limit of one family")
    parser.add_argument("--peer", action="store_true", help="measure the peer tool on the same families as well")
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows = walk(list(options.only or families.names()), jobs=options.jobs, seconds=options.seconds)
    everything = rows
    if options.only is None or options.over:
        known = json.loads(coverage_page.OURS.read_text(encoding="utf-8"))["families"] if options.over else []
        everything = list(({row["name"]: row for row in known} | {row["name"]: row for row in rows}).values())
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        report = summary(everything) | versions | {"families": everything}
        coverage_page.OURS.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        coverage_page.publish()
    print(coverage_page.table(rows))
    if options.peer:
        peer_coverage.compare(options.only, options.peer_venv)
    print(json.dumps(summary(everything), sort_keys=True))


if __name__ == "__main__":
    main()
