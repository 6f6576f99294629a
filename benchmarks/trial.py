"""One trial of an edit, resect against the peer tool heretic: same model, same prompts, same threads.

    python benchmarks/trial.py                                     # everything; the last line is JSON, kept in results/trial.json
    python benchmarks/trial.py --pairs 1 --trials 2 --search-trials 2 --prompts 40     # small, to see that it runs

(a) same rule: any of the peer's markers anywhere in 100 tokens, KL on the harmless prompts; seconds a candidate edit, on the shipped
    organism and on a 30-million-parameter one with long prompts and answers (large_organism.py: constructed, not trained).
(b) own rule: our judge at the opening, with sequential stopping; mean seconds a candidate, as some are dropped early.
(c) wall time from a cold start until an edit at least as good, in refusals and in KL, as the best that heretic finds in 200 trials with its
    defaults: the trial with the fewest refusals and, of those, the least KL. Ours is scored by heretic's rule, on the same prompts.

A pair is a run of heretic and one of ours straight after it; ratios are medians over pairs. Tables give our seconds with each shortcut off
in turn. A quiet machine is needed: the load before and after is kept with the figures.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import large_organism
import peer_environment
import peer_trial
import torch
from peer_trial import Settings
from trial_ours import Score, Task

from resect.generation import NONE, Shortcuts

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "trial.json"


def same_rule(settings: Settings, python: Path, pairs: int) -> dict[str, Any]:
    """Return pairs of median seconds a trial by heretic's rule, their ratio, and the table of shortcuts."""
    task, found = Task(settings), []
    plans = task.candidates(settings.trials)
    for number in range(pairs):
        theirs = peer_trial.search(replace(settings, seed=number), python)
        ours = list(task.same_rule(plans, Shortcuts()))
        pair = {"peer_s": statistics.median(t["seconds"] for t in theirs["trials"]), "ours_s": _median(ours)}
        found.append(pair | {"ratio": pair["peer_s"] / pair["ours_s"], "peer_refusals": [t["refusals"] for t in theirs["trials"]]})
        found[-1]["ours_refusals"] = [s.refusals for s in ours]
    return {"ratio": statistics.median(p["ratio"] for p in found), "pairs": found, "shortcuts": shortcut_table(task, plans)}


def shortcut_table(task: Task, plans: Sequence[Any]) -> dict[str, Any]:
    """Return our seconds a candidate with all shortcuts, each one off, none, all edits in one batch, and by plain `generate`.

    All ways must count the same refusals and give the same KL up to rounding.
    """
    chosen = {"all": Shortcuts()}
    chosen |= {f"without {name}": replace(Shortcuts(), **{name: False}) for name in ("retire", "stop", "drafts", "lower_layers", "memory")}
    runs = {way: task.same_rule(plans, shortcuts) for way, shortcuts in (chosen | {"none": NONE}).items()}
    runs["network.generate"] = (task.plainly(plan) for plan in plans)
    # Candidate by candidate in turn, so that what else the machine does falls on all ways alike.
    ways = {way: list(column) for way, column in zip(runs, zip(*zip(*runs.values(), strict=True), strict=True), strict=True)}
    ways["all edits in one batch"] = task.together(plans)
    for way, scores in ways.items():
        for a, b in zip(ways["all"], scores, strict=True):
            if a.refusals != b.refusals or not math.isclose(a.kl, b.kl, rel_tol=1e-3, abs_tol=1e-7):
                raise RuntimeError(f"{way}: {b.refusals} refusals and KL {b.kl}, with all shortcuts {a.refusals} and {a.kl}.")
    return {way: _median(scores) for way, scores in ways.items()}


def own_rule(settings: Settings, python: Path, pairs: int) -> dict[str, Any]:
    """Return pairs of mean seconds a trial, heretic's by its rule and ours by our own with sequential stopping."""
    task, found = Task(settings), []
    plans = task.candidates(settings.trials)
    for number in range(pairs):
        theirs = peer_trial.search(replace(settings, seed=number), python)
        ours = task.own_rule(plans)
        pair = {"peer_s": statistics.mean(t["seconds"] for t in theirs["trials"]), "ours_s": _mean(ours)}
        found.append(pair | {"ratio": pair["peer_s"] / pair["ours_s"], "dropped": sum(math.isnan(s.kl) for s in ours)})
    table = {"all": _mean(task.own_rule(plans)), "without sequential stopping": _mean(task.own_rule(plans, sequential=False))}
    return {"ratio": statistics.median(p["ratio"] for p in found), "pairs": found, "shortcuts": table}


def to_equal_quality(settings: Settings, python: Path, pairs: int) -> dict[str, Any]:
    """Return pairs of wall seconds from a cold start: heretic's whole search, and ours until its edit is at least as good."""
    found = []
    for number in range(pairs):
        # Batch 0: heretic looks for its own batch size, as it does by default.
        theirs = peer_trial.search(replace(settings, seed=number, batch=0), python)
        best = min((t["refusals"], t["kl"]) for t in theirs["trials"])
        pair = {"peer_s": theirs["wall_s"], "peer_best": best, "frontier": peer_trial.frontier(theirs["trials"])} | _ours_until(
            settings, best
        )
        found.append(pair | {"ratio": pair["peer_s"] / pair["ours_s"] if pair["ours_s"] else None})
    ratios = [p["ratio"] for p in found]
    return {"ratio": statistics.median(ratios) if all(ratios) else None, "pairs": found}


def _ours_until(settings: Settings, best: tuple[int, float]) -> dict[str, Any]:
    """Run our search as a program and return the seconds until an edit at least as good, None if there is none, and what it found."""
    given = [f"--{name}={getattr(settings, name)}" for name in ("threads", "prompts", "tokens", "times", "model")]
    start, tried = time.perf_counter(), []
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    with subprocess.Popen([sys.executable, HERE / "trial_ours.py", *given], stdout=subprocess.PIPE, text=True, env=environment) as program:
        for line in program.stdout or ():
            tried.append(json.loads(line))
            if tried[-1]["refusals"] <= best[0] and tried[-1]["kl"] <= best[1]:
                program.kill()
                return {"ours_s": time.perf_counter() - start, "ours": tried}
    if program.returncode:
        raise RuntimeError(f"Our search ended with code {program.returncode}.")
    return {"ours_s": None, "ours": tried}


def _median(scores: Sequence[Score]) -> float:
    return statistics.median(s.seconds for s in scores)


def _mean(scores: Sequence[Score]) -> float:
    return statistics.mean(s.seconds for s in scores)


def table(name: str, result: dict[str, Any]) -> str:
    """Return a comparison as text."""
    ratio = "none as good" if result["ratio"] is None else f"{result['ratio']:.1f} x"
    lines = [f"{name}: {ratio} (median of {len(result['pairs'])})"]
    for pair in result["pairs"]:
        ours = "not reached" if pair["ours_s"] is None else f"{pair['ours_s']:.3f} s"
        lines.append(f"  heretic {pair['peer_s']:.3f} s, ours {ours}")
    lines += [f"    {way:30} {seconds:8.3f} s" for way, seconds in result.get("shortcuts", {}).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    parser.add_argument("--large", type=Path, default=Path("runs") / "large", help="folder of the large organism, built if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", default=["same_rule_organism", "same_rule_large", "own_rule", "to_equal_quality"])
    defaults = {"pairs": 5, "trials": 10, "search-trials": 200, "search-pairs": 5, "threads": 2, "prompts": 100, "tokens": 100}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = peer_environment.ensure(options.peer_venv)
    small = Settings(trials=options.trials, threads=options.threads, prompts=options.prompts, tokens=options.tokens)
    large = replace(small, model=str(large_organism.build(options.large)), times=large_organism.TIMES)
    runs = {
        "same_rule_organism": lambda: same_rule(small, python, options.pairs),
        "same_rule_large": lambda: same_rule(large, python, options.pairs),
        "own_rule": lambda: own_rule(small, python, options.pairs),
        "to_equal_quality": lambda: to_equal_quality(replace(small, trials=options.search_trials), python, options.search_pairs),
    }
    load, results = os.getloadavg()[0], {}
    for name in options.only:
        results[name] = runs[name]()
        print(table(name, results[name]), flush=True)
    report: dict[str, Any] = {name: result["ratio"] for name, result in results.items()}
    report |= {"details": results, "settings": asdict(small) | {"pairs": options.pairs, "search_trials": options.search_trials}}
    report |= {"shortcuts": [f.name for f in fields(Shortcuts)], "load_before": load, "load_after": os.getloadavg()[0]}
    report["peer"] = peer_environment.record(options.peer_venv).get("versions")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
