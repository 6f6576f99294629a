"""Finished steps of a study on disk, so that a killed run goes on where it stopped and ends with the same numbers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from resect import artifacts
from resect.cache import Cache, Kept, Key, remember

TENSORS = "resect.step/1"


class NotKept(Exception):
    """A step would have to be computed while one only looks (`Steps.looking`)."""


class Steps:
    """Computes each named step once per run folder; a finished step is read back instead.

    A step's file appears only when it is whole (written to a temporary name, then renamed). JSON numbers round-trip
    exactly, so a resumed run continues from the very values that the killed one had.

    With a cache a step that has a key is taken from there, if another run has done it already, and kept there once it is done.
    """

    def __init__(self, folder: Path, on_step: Callable[[str], None] | None = None, cache: Cache | None = None) -> None:
        self.folder, self.cache = folder, cache
        self.on_step = on_step or (lambda _: None)
        self.seconds: dict[str, float] = {}
        self._looking = False

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Raise `NotKept` for a step that is neither finished nor in the cache, and compute nothing, inside the `with` block."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def json(self, name: str, compute: Callable[[], Any], *, key: Key | None = None, whole: Callable[[Any], bool] = lambda _: True) -> Any:
        """Return the step's JSON value, computed or read back.

        A value that is not `whole` is not kept, and computed anew next time; a step that has a key always is.
        """
        path = self.folder / "steps" / f"{name}.json"
        if not path.exists():
            value = remember(self.cache, key, lambda: Kept(self._timed(name, compute)), step=name).value
            if not whole(value):
                return value
            artifacts.write_json(path, value)
        return artifacts.read_json(path)

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]], *, key: Key | None = None) -> dict[str, Tensor]:
        """Return the step's tensors, computed or read back."""
        path = self.folder / "activations" / f"{name}.safetensors"
        if not path.exists():
            kept = remember(self.cache, key, lambda: Kept(tensors=self._timed(name, compute)), step=name)
            artifacts.save_tensors(path, kept.tensors, {"format": TENSORS, "step": name})
        return artifacts.load_tensors(path, format=TENSORS)[0]

    def _timed(self, name: str, compute: Callable[[], Any]) -> Any:
        if self._looking:
            raise NotKept(name)
        self.on_step(name)
        start = time.perf_counter()
        value = compute()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return value
