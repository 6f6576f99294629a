"""Reading a finished run folder; everything that can be wrong with it is said in one sentence."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resect.errors import UserError
from resect.report.values import Json, Measure, read_measure

FORMATS = {"evaluation.json": "resect.evaluation/1", "study.json": "resect.study/1", "edit_proof.json": "resect.edit_proof/1"}
REQUIRED = ("run.toml", "evaluation.json", "study.json", "samples.jsonl")
FILES = (*REQUIRED, "edit_proof.json")
"""All that a page is made from."""


# Files keep their keys sorted, so the order in which arms are read is fixed here: what is compared first, controls last.
ARMS = ("base", "standard", "projected", "sra", "whitened", "combined", "oblique", "standard_sra_strength", "sra_flat", "random_atoms")


def ordered(names: Iterable[str]) -> list[str]:
    """Return arm names in the order in which they are shown; unknown ones stand by name before the controls."""
    controls = ARMS.index("standard_sra_strength")
    return sorted(names, key=lambda name: (ARMS.index(name) if name in ARMS else controls - 0.5, name))


@dataclass(frozen=True)
class RunFolder:
    """What the report needs of a run folder; `proof` is empty where the run has none."""

    evaluation: Json
    study: Json
    samples: tuple[Json, ...]
    config: str
    proof: Json = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """The arm names in the order in which they are always shown."""
        return ordered(self.evaluation["arms"])

    @property
    def controls(self) -> set[str]:
        """The names of the arms that are controls."""
        return {arm for arm, entry in self.part("arms").items() if entry.get("control")}

    def measure(self, arm: str, name: str) -> Measure | None:
        """Return a measure of one arm of the evaluation, None where it was not taken."""
        return read_measure(self.evaluation["arms"].get(arm, {}).get(name))

    def perplexity(self, arm: str, capability: str) -> Measure | None:
        """Return one perplexity of one arm, None where it was not taken."""
        return read_measure((self.evaluation["arms"].get(arm, {}).get("perplexity") or {}).get(capability))

    def capabilities(self) -> list[str]:
        """Return every capability name that any arm was measured on, in order of appearance."""
        return list(dict.fromkeys(name for arm in self.evaluation["arms"].values() for name in arm.get("perplexity") or {}))

    def part(self, name: str) -> dict[str, Any]:
        """Return an object of the study, empty where the study did not write it."""
        return dict(self.study.get(name) or {})

    def by_arm(self, name: str) -> dict[str, Any]:
        """Return an object of the study whose keys are arms, in the order in which arms are always shown."""
        found = self.part(name)
        return {arm: found[arm] for arm in ordered(found)}

    def rows(self, name: str) -> list[Json]:
        """Return a list of the study, empty where the study did not write it."""
        return list(self.study.get(name) or [])


def read_run(run: Path) -> RunFolder:
    """Return the contents of a finished run folder.

    Raises:
        UserError: if the folder or one of its files is missing, is not JSON, or has another format.
    """
    for name in REQUIRED:
        if not (run / name).is_file():
            raise UserError(
                f"{run} is not a finished run: {name} is missing; a report needs {', '.join(REQUIRED)}; "
                f"finish the run first with: resect sra MODEL --out {run}"
            )
    return RunFolder(
        evaluation=_json(run / "evaluation.json", needs=("model", "arms")),
        study=_json(run / "study.json", needs=("model", "arms", "matched")),
        samples=tuple(_lines(run / "samples.jsonl")),
        config=(run / "run.toml").read_text(encoding="utf-8"),
        proof=_json(run / "edit_proof.json", needs=("model",)) if (run / "edit_proof.json").is_file() else {},
    )


def _json(path: Path, *, needs: tuple[str, ...]) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the study again to write it anew.") from error
    found, wanted = value.get("format") if isinstance(value, Mapping) else None, FORMATS[path.name]
    if found != wanted:
        raise UserError(
            f"{path} has format {found!r}, but this version reads {wanted!r}; run the study again, or use the version that wrote it."
        )
    missing = [key for key in needs if not isinstance(value.get(key), str | Mapping) or not value[key]]
    if missing:
        raise UserError(f"{path} lacks {', '.join(map(repr, missing))}, which the report needs; run the study again to write it anew.")
    return value


def _lines(path: Path) -> list[Json]:
    rows: list[Json] = []
    for index, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {index}, is not valid JSON ({error}); run the study again to write it anew.") from error
        if not isinstance(row, Mapping):
            raise UserError(f"{path}, line {index}, holds {type(row).__name__} instead of an object; run the study again to write it anew.")
        rows.append(row)
    return rows
