"""Finished steps of a study on disk, so that a killed run goes on where it stopped and ends with the same numbers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from resect import artifacts

T = TypeVar("T")
TENSORS = "resect.step/1"


class Steps:
    """Computes each named step once per run folder; a finished step is read back instead.

    A step's file appears only when it is whole (written to a temporary name, then renamed). JSON numbers round-trip
    exactly, so a resumed run continues from the very values that the killed one had.
    """

    def __init__(self, folder: Path, on_step: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.on_step = on_step or (lambda _: None)
        self.seconds: dict[str, float] = {}

    def json(self, name: str, compute: Callable[[], Any], *, whole: Callable[[Any], bool] = lambda _: True) -> Any:
        """Return the step's JSON value, computed or read back; a value that is not `whole` is not kept, and computed anew next time."""
        path = self.folder / "steps" / f"{name}.json"
        if not path.exists():
            value = self._timed(name, compute)
            if not whole(value):
                return value
            artifacts.write_json(path, value)
        return artifacts.read_json(path)

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the step's tensors, computed or read back."""
        path = self.folder / "activations" / f"{name}.safetensors"
        if not path.exists():
            artifacts.save_tensors(path, self._timed(name, compute), {"format": TENSORS, "step": name})
        return artifacts.load_tensors(path, format=TENSORS)[0]

    def _timed(self, name: str, compute: Callable[[], T]) -> T:
        self.on_step(name)
        start = time.perf_counter()
        value = compute()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return value
