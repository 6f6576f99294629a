"""One trial of an edit, resect against the peer tool heretic: same model, same prompts, same edits, same threads.

    python benchmarks/trial.py --threads 1                         # everything; the last line is JSON, kept in results/trial.json
    python benchmarks/trial.py --threads 1 --resume                # goes on where a run with the same settings was stopped
    python benchmarks/trial.py --pairs 1 --trials 2 --search-trials 2 --prompts 40 --out runs/trial.json     # small, to see that it runs

(a) same rule: any of the peer's markers anywhere in 100 tokens, KL on the harmless prompts; seconds a candidate edit, on the shipped
    organism and on a 30-million-parameter one with long prompts and answers (large_organism.py: constructed, not trained).
(b) own rule: our judge at the opening, with sequential stopping; mean seconds a candidate, as some are dropped early.
(c) wall time from a cold start until an edit at least as good, in refusals and in KL, as the best that heretic finds in 200 trials with its
    defaults: the trial with the fewest refusals and, of those, the least KL. Ours is scored by heretic's rule, on the same prompts.

A pair is a run of heretic and one of ours straight after it; ratios are medians over pairs. In (a) and (b) ours scores the very edits that
heretic tried in that run, made from its parameters; both counts of refusals are kept. What ours remembers (responses, lower layers) it
keeps from pair to pair, as in one search of all their edits; tables begin with an empty memory. On the large organism heretic takes its
directions from fewer prompts and tries fewer edits, which is in neither side's seconds. Tables give our seconds with each shortcut off in
turn. A quiet machine is needed: the load before and after every pair is kept with it. The file is written after every pair.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import large_organism
import peer_environment
import peer_trial
import torch
from peer_trial import Settings
from trial_ours import Score, Task

from resect.config.base import SHORTCUTS
from resect.edit.plan import EditPlan
from resect.generation import NONE, Shortcuts

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "trial.json"
LARGE_EXTRACT, LARGE_TRIALS, LARGE_TABLE = 50, 3, 2
"""On the large organism: prompts a side for heretic's directions, its trials in a pair, and edits of the table of shortcuts."""
Pair = dict[str, Any]


class Comparison(Protocol):
    """What is compared: pairs, and our seconds with each shortcut off, on what the last pair did."""

    settings: Settings

    def pair(self, number: int) -> Pair:
        """Run heretic, and ours straight after it; `peer_s` and `ours_s` are what is compared."""
        ...

    def shortcuts(self, pairs: Sequence[Pair]) -> dict[str, float | None]:
        """Return our seconds by what is switched off."""
        ...


class SameRule:
    """(a): median seconds a candidate, both by heretic's rule; the table is about at most `table` of the last pair's edits."""

    def __init__(self, settings: Settings, python: Path, *, table: int = 10) -> None:
        self.settings, self.python, self.task, self.table = settings, python, Task(settings), table
        self.memory = self.task.memory()

    def pair(self, number: int) -> Pair:
        theirs = peer_trial.search(replace(self.settings, seed=number), self.python)["trials"]
        ours = list(self.task.same_rule(self.task.edits(theirs), Shortcuts(), self.memory))
        seconds = {"peer_s": statistics.median(t["seconds"] for t in theirs), "ours_s": statistics.median(s.seconds for s in ours)}
        return seconds | {"trials": theirs, "ours": [asdict(s) for s in ours]}

    def shortcuts(self, pairs: Sequence[Pair]) -> dict[str, float | None]:
        """All ways must count the same refusals and give the same KL up to rounding."""
        plans = self.task.edits(pairs[-1]["trials"][: self.table])
        chosen = {"all": Shortcuts()}
        chosen |= {
            f"without {name}": replace(Shortcuts(), **{name: False})
            for name in ("retire", "stop", "drafts", "lower_layers", "prefix", "memory")
        }
        runs = {way: self.task.same_rule(plans, shortcuts) for way, shortcuts in (chosen | {"none": NONE}).items()}
        runs["network.generate"] = (self.task.plainly(plan) for plan in plans)
        # Candidate by candidate in turn, so that what else the machine does falls on all ways alike.
        ways = {way: list(column) for way, column in zip(runs, zip(*zip(*runs.values(), strict=True), strict=True), strict=True)}
        _check_alike(ways)
        # A batch with one edit a row cannot keep norms, so this is about edits that do not.
        free = [EditPlan(tuple(replace(edit, preserve="nothing") for edit in plan.edits)) for plan in plans]
        batches = {
            "norms not kept": list(self.task.same_rule(free, Shortcuts())),
            "norms not kept, all edits in one batch": self.task.together(free),
        }
        _check_alike(batches)
        return {way: statistics.median(s.seconds for s in scores) for way, scores in (ways | batches).items()}


class OwnRule:
    """(b): mean seconds a candidate, heretic's by its rule and ours by our own with sequential stopping."""

    def __init__(self, settings: Settings, python: Path) -> None:
        self.settings, self.python, self.task = settings, python, Task(settings)
        self.memory = self.task.memory()

    def pair(self, number: int) -> Pair:
        theirs = peer_trial.search(replace(self.settings, seed=number), self.python)["trials"]
        ours = self.task.own_rule(self.task.edits(theirs), Shortcuts(), self.memory)
        pair = {"peer_s": statistics.mean(t["seconds"] for t in theirs), "ours_s": statistics.mean(s.seconds for s in ours)}
        return pair | {"dropped": sum(s.dropped for s in ours), "trials": theirs, "ours": [asdict(s) for s in ours]}

    def shortcuts(self, pairs: Sequence[Pair]) -> dict[str, float | None]:
        plans = self.task.edits(pairs[-1]["trials"])
        runs = {"all": self.task.own_rule(plans, Shortcuts())}
        runs["without sequential stopping"] = self.task.own_rule(plans, Shortcuts(), sequential=False)
        for name in ("retire", "stop", "drafts", "lower_layers", "prefix", "memory"):
            runs[f"without {name}"] = self.task.own_rule(plans, replace(Shortcuts(), **{name: False}))
        runs["none"] = self.task.own_rule(plans, NONE, sequential=False)
        return {way: statistics.mean(s.seconds for s in scores) for way, scores in runs.items()}


class EqualQuality:
    """(c): wall seconds from a cold start, heretic's whole search, and ours until its edit is at least as good."""

    def __init__(self, settings: Settings, python: Path) -> None:
        # Batch 0: heretic looks for its own batch size, as it does by default.
        self.settings, self.python = replace(settings, batch=0), python

    def pair(self, number: int) -> Pair:
        theirs = peer_trial.search(replace(self.settings, seed=number), self.python)
        best = min((t["refusals"], t["kl"]) for t in theirs["trials"])
        pair = {"peer_s": theirs["wall_s"], "peer_setup_s": theirs["setup_s"], "peer_best": best}
        return pair | {"frontier": peer_trial.frontier(theirs["trials"])} | self._ours_until(best)

    def shortcuts(self, pairs: Sequence[Pair]) -> dict[str, float | None]:
        best = pairs[-1]["peer_best"]
        off = [[], *([name] for name in ("retire", "stop", "drafts", "memory", "lower_layers", "prefix")), SHORTCUTS]
        names = ["all", *(f"without {name}" for (name,) in off[1:-1]), "none"]
        return {way: self._ours_until(best, off=names)["ours_s"] for way, names in zip(names, off, strict=True)}

    def _ours_until(self, best: Sequence[float], *, off: Sequence[str] = ()) -> Pair:
        """Run our search as a program; return the seconds until an edit at least as good, None if there is none, and what it found."""
        given = [f"--{name}={getattr(self.settings, name)}" for name in ("threads", "prompts", "tokens", "times", "model")]
        command, tried = [sys.executable, HERE / "trial_ours.py", *given, "--off", *off], []
        environment, start = {**os.environ, "OMP_NUM_THREADS": str(self.settings.threads)}, time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
            for line in program.stdout or ():
                tried.append(json.loads(line) | {"seconds": time.perf_counter() - start})
                if tried[-1]["refusals"] <= best[0] and tried[-1]["kl"] <= best[1]:
                    program.kill()
                    return {"ours_s": tried[-1]["seconds"], "ours": tried}
        if program.returncode:
            raise RuntimeError(f"Our search ended with code {program.returncode}.")
        return {"ours_s": None, "ours": tried}


def _check_alike(ways: dict[str, list[Score]]) -> None:
    first, *others = ways
    for way in others:
        for a, b in zip(ways[first], ways[way], strict=True):
            if a.refusals != b.refusals or not math.isclose(a.kl or 0.0, b.kl or 0.0, rel_tol=1e-3, abs_tol=1e-7):
                raise RuntimeError(f"{way}: {b.refusals} refusals and KL {b.kl}, {first}: {a.refusals} and {a.kl}.")


class Kept:
    """The report, written after every pair."""

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.report: dict[str, Any] = {"settings": settings, "details": {}}
        if resume and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != settings:
                raise SystemExit(f"{path} was measured with other settings: {found['settings']}; leave out --resume to begin anew.")
            self.report = found

    def compare(self, name: str, make: Callable[[], Comparison], pairs: int) -> None:
        """Run the pairs of a comparison that are not there yet, and its table of shortcuts."""
        result = self.report["details"].setdefault(name, {"pairs": []})
        if len(result["pairs"]) >= pairs and "shortcuts" in result:
            return
        comparison = make()
        result["settings"] = asdict(comparison.settings)
        for number in range(len(result["pairs"]), pairs):
            load = os.getloadavg()[0]
            pair = comparison.pair(number)
            ratio = pair["peer_s"] / pair["ours_s"] if pair["ours_s"] else None
            result["pairs"].append({"ratio": ratio} | pair | {"load": [load, os.getloadavg()[0]]})
            ratios = [p["ratio"] for p in result["pairs"]]
            self.report[name] = statistics.median(ratios) if all(ratios) else None
            self.write()
            print(line(name, result["pairs"][-1]), flush=True)
        result["shortcuts"] = comparison.shortcuts(result["pairs"])
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")


def line(name: str, pair: Pair) -> str:
    """Return a pair as text."""
    ours = f"{pair['ours_s']:.3f} s, {pair['ratio']:.1f} x" if pair["ours_s"] else "not reached"
    return f"{name}: heretic {pair['peer_s']:.3f} s, ours {ours}"


def table(name: str, result: dict[str, Any]) -> str:
    """Return a comparison as text."""
    lines = [f"{name}: median of {len(result['pairs'])}", *(line("  pair", pair) for pair in result["pairs"])]
    off = result.get("shortcuts", {})
    return "\n".join([*lines, *(f"    {way:40} " + ("not reached" if s is None else f"{s:8.3f} s") for way, s in off.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    parser.add_argument("--large", type=Path, default=Path("runs") / "large", help="folder of the large organism, built if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", nargs="*", default=["same_rule_organism", "own_rule", "same_rule_large", "to_equal_quality"])
    defaults = {"pairs": 5, "trials": 10, "search-trials": 200, "threads": 2, "prompts": 100, "tokens": 100}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = peer_environment.ensure(options.peer_venv)
    small = Settings(trials=options.trials, threads=options.threads, prompts=options.prompts, tokens=options.tokens)
    comparisons: dict[str, Callable[[], Comparison]] = {
        "same_rule_organism": lambda: SameRule(small, python),
        "own_rule": lambda: OwnRule(small, python),
        "same_rule_large": lambda: SameRule(_large(small, options.large), python, table=LARGE_TABLE),
        "to_equal_quality": lambda: EqualQuality(replace(small, trials=options.search_trials), python),
    }
    kept = Kept(options.out, asdict(small) | {"search_trials": options.search_trials}, resume=options.resume)
    kept.report["peer"] = peer_environment.record(options.peer_venv).get("versions")
    for name in options.only:
        kept.compare(name, comparisons[name], options.pairs)
        print(table(name, kept.report["details"][name]), flush=True)
    print(json.dumps({name: kept.report.get(name) for name in comparisons}))


def _large(small: Settings, folder: Path) -> Settings:
    trials = min(small.trials, LARGE_TRIALS)
    return replace(small, model=str(large_organism.build(folder)), times=large_organism.TIMES, extract=LARGE_EXTRACT, trials=trials)


if __name__ == "__main__":
    main()
