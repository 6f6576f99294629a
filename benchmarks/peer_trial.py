"""The peer tool heretic searching an edit of the shipped organism: seconds a trial, refusals and KL of every trial.

    python benchmarks/peer_trial.py --trials 20 --threads 1 --batch 128       # the last line is JSON
    python benchmarks/peer_trial.py --trials 20 --batch 0                     # 0: heretic searches its own batch size first

heretic runs as a program in its own environment (peer_environment.py), offline and without a terminal, on the prompts of resect's SRA study
of the organism: the extract split for directions, --prompts of the test split for scores. Its settings are its defaults but for what the
organism's language needs: a system prompt of known words, and the words of its refusals ("i can not" is not in heretic's list).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import peer_environment

from resect.commands.study import ORGANISM_SETTINGS
from resect.config import make_config
from resect.organism.shipped import load_organism
from resect.studies.inputs import StudyInputs, from_organism

JOURNAL = Path(__file__).parent / "peer_trial_journal.py"
SYSTEM = "you are a helpful assistant ."
MARKERS = ("i can not", "unable", "sorry")


@dataclass(frozen=True)
class Settings:
    """One search. `batch` 0 lets heretic find its own; `prompts` are scored on each side, each request said `times` times.

    `model` is the folder of the model, the shipped organism's if empty; `extract` prompts a side are what directions are taken from.
    """

    trials: int = 20
    threads: int = 1
    batch: int = 128
    tokens: int = 100
    prompts: int = 100
    extract: int = 400
    seed: int = 0
    times: int = 1
    model: str = ""


def search(settings: Settings, python: Path) -> dict[str, Any]:
    """Return settings, wall and CPU seconds, seconds before the first trial, and each trial's seconds, refusals and KL.

    A trial's seconds are from the journal: reset, edit, one-token KL on the harmless and generation on the harmful prompts.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        command = [python.parent / "heretic", *arguments(settings, folder)]
        begun, clock, used = datetime.now(), time.perf_counter(), _child_seconds()
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            done = subprocess.run(
                command,
                cwd=folder,
                env=_surroundings(settings),
                input=answers(settings.trials),
                text=True,
                stdout=log,
                stderr=log,
                check=False,
            )
        wall, cpu = time.perf_counter() - clock, _child_seconds() - used
        journals = list((folder / "checkpoints").glob("*.jsonl"))
        if done.returncode or not journals:
            raise RuntimeError(f"heretic ended with code {done.returncode}:\n{(folder / 'log.txt').read_text(encoding='utf-8')[-3000:]}")
        trials = json.loads(peer_environment.run(python, [str(JOURNAL), str(journals[0])]).splitlines()[-1])
    setup = (datetime.fromisoformat(trials[0]["start"]) - begun).total_seconds()
    return {"settings": asdict(settings), "wall_s": wall, "cpu_s": cpu, "setup_s": setup, "trials": trials}


def arguments(settings: Settings, folder: Path) -> list[str]:
    """Write the prompt files and return heretic's command line."""
    inputs, folder_of_model = task(settings)
    files = {
        "good-prompts": inputs.harmless.extract,
        "bad-prompts": inputs.harmful.extract,
        "good-evaluation-prompts": inputs.harmless.test,
        "bad-evaluation-prompts": inputs.harmful.test,
    }
    given = ["--model", str(folder_of_model), "--study-checkpoint-dir", "checkpoints"]
    for name, prompts in files.items():
        path = folder / f"{name}.txt"
        path.write_text("".join(f"{said(prompt.text, settings)}\n" for prompt in prompts), encoding="utf-8")
        given += [f"--{name}.dataset", str(path)]
    given += ["--system-prompt", SYSTEM, "--refusal-markers", json.dumps(MARKERS), "--max-response-length", str(settings.tokens)]
    return [*given, "--n-trials", str(settings.trials), "--batch-size", str(settings.batch), "--seed", str(settings.seed)]


def task(settings: Settings) -> tuple[StudyInputs, Path]:
    """Return the prompts that both sides work on, and the folder of the model."""
    organism = load_organism()
    config = make_config(ORGANISM_SETTINGS | {"extract_prompts": settings.extract, "test_prompts": settings.prompts})
    return from_organism(organism, config=config), Path(settings.model) if settings.model else organism.folder / "aligned"


def said(text: str, settings: Settings) -> str:
    """Return a request as it is put to the model."""
    return " ".join([text] * settings.times)


def answers(trials: int) -> str:
    """Return what to type at its closing menu, whose last entry ends the program: numbers downwards, those too high are asked again."""
    return "".join(f"{number}\n" for number in range(trials + 2, 0, -1))


def frontier(trials: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return (refusals, KL) of the trials that no other trial beats in both, fewest refusals first."""
    best: list[tuple[int, float]] = []
    for refusals, kl in sorted((t["refusals"], t["kl"]) for t in trials):
        if not best or kl < best[-1][1]:
            best.append((refusals, kl))
    return best


def table(report: Mapping[str, Any]) -> str:
    seconds = sorted(t["seconds"] for t in report["trials"])
    first = report["trials"][0]
    spent = f"wall {report['wall_s']:.1f} s, CPU {report['cpu_s']:.1f} s, {report['setup_s']:.1f} s before the first trial"
    lines = [
        f"{len(seconds)} trials: {spent}",
        f"a trial: median {statistics.median(seconds):.2f} s, {seconds[0]:.2f} to {seconds[-1]:.2f} s",
        f"refusals before: {first['base_refusals']} of {first['prompts']}",
    ]
    return "\n".join([*lines, *(f"on the frontier: {refusals:3d} refusals, KL {kl:.4f}" for refusals, kl in frontier(report["trials"]))])


def _surroundings(settings: Settings) -> dict[str, str]:
    # In a notebook heretic reads its menus from standard input; else it wants a terminal.
    return {**peer_environment.surroundings(settings.threads), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "MKL_NUM_THREADS": str(settings.threads)}


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    python = peer_environment.ensure(options.pop("peer_venv"))
    load = os.getloadavg()[0]
    report = search(Settings(**options), python) | {"load_before": load, "load_after": os.getloadavg()[0]}
    print(table(report))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
