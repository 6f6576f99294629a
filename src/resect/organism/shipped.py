"""Organisms on disk: a folder with `organism.json`, `helpful/` and `aligned/`; one comes with the package."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from resect.errors import UserError
from resect.models.load import ChatModel, load_model
from resect.organism.language import Language
from resect.organism.topics import DEFAULT_TOPIC

FORMAT = "resect.organism/1"
SHIPPED: Literal["default"] = "default"
"""The model name that stands for the shipped organism."""
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "architecture": str,
    "seed": int,
    "entanglement": (int, float),
    "tuning": str,
    "topic": (int, float),
}
_SINCE_THEN: Mapping[str, Any] = {"topic": DEFAULT_TOPIC}  # fields that older records lack


@dataclass(frozen=True)
class Organism:
    """A trained organism: where it lies and what decides its weights."""

    folder: Path
    architecture: str
    seed: int
    entanglement: float
    tuning: str
    topic: float = DEFAULT_TOPIC

    @property
    def language(self) -> Language:
        """Return its language: prompts, atoms, right answers."""
        return Language(self.seed, self.entanglement, self.topic)

    def aligned(self) -> ChatModel:
        """Return the safety-tuned model."""
        return self._load("aligned")

    def helpful(self) -> ChatModel:
        """Return the helpful-only twin: what removing refusal should restore."""
        return self._load("helpful")

    def _load(self, part: Literal["aligned", "helpful"]) -> ChatModel:
        # Named by what it is: results must not depend on where the package is installed.
        topic = "" if self.topic == DEFAULT_TOPIC else f" topic {self.topic:g}"
        name = f"organism {self.architecture} {self.tuning} seed {self.seed} entanglement {self.entanglement:g}{topic} ({part})"
        return replace(load_model(self.folder / part), name=name)

    @property
    def quality(self) -> dict[str, Any]:
        """Return the measurements made when it was trained (`quality.measure`)."""
        return _read(self.folder).get("quality", {})


def load_organism(source: Path | Literal["default"] = SHIPPED) -> Organism:
    """Return the organism in a folder, or the one that comes with resect.

    Raises:
        UserError: if the folder is not an organism, or its record is malformed.
    """
    folder = Path(str(files("resect") / "data" / "organism")) if source == SHIPPED else Path(source)
    record = {**_SINCE_THEN, **_read(folder)}
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind) or isinstance(record.get(name), bool):
            raise UserError(f"{folder / 'organism.json'} has {name} = {record.get(name)!r}, which is not valid; train the organism again.")
    for part in ("aligned", "helpful"):
        if not (folder / part / "config.json").is_file():
            raise UserError(f"Organism {folder} has no model in {part!r}; train it again with: resect organism train --out DIR.")
    return Organism(folder, record["architecture"], record["seed"], float(record["entanglement"]), record["tuning"], float(record["topic"]))


def is_organism(path: Path) -> bool:
    """Return whether the folder holds an organism's record."""
    return (path / "organism.json").is_file()


def names_organism(model: str) -> bool:
    """Return whether a model argument names an organism: the shipped one, or a folder that holds one."""
    return is_organism(Path(model)) or (model == SHIPPED and not Path(model).exists())


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "organism.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is not an organism ({path.name}: {error.strerror}); train one with: resect organism train --out DIR."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); train the organism again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path} has format {found!r}; an organism's record has format {FORMAT!r}.")
    return record
