"""Reading a finished contrast run; everything that can be wrong with it is said in one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resect import artifacts
from resect.errors import UserError
from resect.report.values import Json

FORMAT = "resect.contrast/1"
FILES = ("run.toml", "contrast.json")
"""All that a page is made from."""
NEEDED = ("model", "arms", "evaluation", "grids", "protocol", "geometry", "matched", "verdicts")


@dataclass(frozen=True)
class ContrastRun:
    """What the report needs of a contrast run."""

    document: Json
    config: str

    def part(self, name: str) -> Mapping[str, Any]:
        """Return an object of the document, empty where the study did not write it."""
        return self.document.get(name) or {}

    def errors(self, name: str) -> dict[str, Any]:
        """Return one of the error bars of every baseline that has it."""
        found = self.part("geometry").get("errors") or {}
        return {baseline: bars[name] for baseline, bars in found.items() if bars.get(name)}

    @property
    def arms(self) -> list[str]:
        """The arms in the order of the study: baselines by method, then controls."""
        return sorted(self.part("arms"), key=lambda name: self.part("arms")[name]["order"])

    @property
    def plain(self) -> list[str]:
        """The arms that are no controls."""
        return [arm for arm in self.arms if not self.part("arms")[arm]["control"]]

    def cells(self, arm: str, kind: str | None = None) -> list[Json]:
        """Return the cells of an arm's grid, of one kind of place if asked."""
        return [cell for cell in self.part("grids").get(arm, []) if kind is None or cell["kind"] == kind]


def read_contrast(run: Path) -> ContrastRun:
    """Return the contents of a finished contrast run.

    Raises:
        UserError: a file is missing, is not JSON, has another format or lacks a part.
    """
    for name in FILES:
        if not (run / name).is_file():
            raise UserError(f"{run} is not a finished contrast run: {name} is missing; finish it with: resect contrast MODEL --out {run}")
    document = artifacts.read_json(run / "contrast.json")
    found = document.get("format") if isinstance(document, Mapping) else None
    if found != FORMAT:
        raise UserError(f"{run / 'contrast.json'} has format {found!r}, but this version reads {FORMAT!r}; run the study again.")
    missing = [name for name in NEEDED if name not in document]
    if missing:
        raise UserError(f"{run / 'contrast.json'} lacks {', '.join(missing)}, which the report needs; run the study again.")
    return ContrastRun(document, (run / "run.toml").read_text(encoding="utf-8"))
