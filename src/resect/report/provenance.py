"""The tables that say how a run was made, and the samples that it kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resect.report.read import Json, RunFolder
from resect.report.tables import Table, arm_cell, cell, plain
from resect.report.values import MISSING, finite, number, read_measure

SPLITS = ("extract", "validation", "test")
SHOWN_SAMPLES = ("sra", "standard", "projected", "combined", "random_atoms", "base")


def settings(run: RunFolder) -> Table:
    """Return what each arm is and the setting that was chosen for it on the validation prompts."""
    rows = []
    for arm, entry in run.by_arm("arms").items():
        window = entry.get("window")
        validation = entry.get("validation") or {}
        source = entry.get("source")
        rows.append(
            plain(
                (
                    arm_cell(run, arm),
                    entry.get("method", ""),
                    "own, per layer" if source == "per_layer" else "none" if source is None else f"layer {source}",
                    f"{window[0]} to {window[1]}" if window else "none",
                    number(finite(entry.get("strength"))),
                    _tried(entry),
                    cell(read_measure(validation.get("refusal_rate")), measure="refusal_rate"),
                    cell(read_measure(validation.get("kl_first_token")), measure="kl_first_token"),
                )
            )
        )
    head = ("arm", "what it is", "direction", "layers edited", "strength γ", "settings tried", "validation refusals", "validation KL, nats")
    return Table(head, tuple(rows))


def _tried(entry: Json) -> str:
    dropped = entry.get("dropped")
    return f"{entry.get('candidates', MISSING)}" + (f", {dropped} dropped early" if dropped else "")


def prompt_counts(run: RunFolder) -> Table | None:
    """Return the prompt counts by set and split and how many were kept by the behaviour filter."""
    rows = []
    for name in ("harmful", "harmless"):
        splits = run.part("prompts").get(name) or {}
        for split in sorted(splits, key=lambda each: (SPLITS.index(each) if each in SPLITS else len(SPLITS), each)):
            entry = splits[split]
            rows.append(plain((name, split, entry.get("n", MISSING), entry.get("kept", "not filtered"))))
    return Table(("set", "split", "prompts", "kept by the filter"), tuple(rows)) if rows else None


@dataclass(frozen=True)
class Samples:
    """The first samples of one arm."""

    arm: str
    rows: tuple[Mapping[str, Any], ...]
    total: int


def samples(run: RunFolder, *, limit: int = 12) -> list[Samples]:
    """Return the first samples of each interesting arm, two of three harmful where there are enough."""
    groups = []
    for arm in (name for name in SHOWN_SAMPLES if name in run.arms):
        mine = [row for row in run.samples if row.get("arm") == arm]
        harmful = [row for row in mine if row.get("set") == "harmful"]
        others = [row for row in mine if row.get("set") != "harmful"]
        share = max(limit * 2 // 3, limit - len(others))
        chosen = harmful[:share] + others[: limit - len(harmful[:share])]
        if chosen:
            groups.append(Samples(arm, tuple(chosen), len(mine)))
    return groups
