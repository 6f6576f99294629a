"""Finished steps of studies, kept from run to run under the hash of everything that they were made from.

One safetensors file an entry: tensors, and a JSON header with the value, the step's and the model's name, and a checksum over all of it. An
entry that does not fit its checksum or its name is removed and made again. The folder belongs to one user; what cannot be read or written
there costs time and nothing else.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from resect import artifacts
from resect.digests import digest
from resect.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "resect.kept/1"
PLACE, SIZE = "RESECT_CACHE", "RESECT_CACHE_GB"
DEFAULT_GB = 5.0
_ENDING = ".safetensors"
_UNFINISHED = 3600.0  # seconds after which an unfinished file has no writer any more


@dataclass(frozen=True)
class Key:
    """The name of an entry: a hash of all that it is made from. `model` is told to people only."""

    name: str
    model: str


@dataclass(frozen=True, eq=False)
class Kept:
    """What an entry holds: a JSON value, tensors by name, or both."""

    value: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An entry as `resect cache list` shows it: size in bytes, `used` in seconds since the epoch; no step or model if it is damaged."""

    key: str
    step: str | None
    model: str | None
    size: int
    used: float


class Cache:
    """A folder of entries, least recently used ones removed beyond `limit` bytes. Safe for several processes at once."""

    def __init__(self, place: Path, *, limit: int = int(DEFAULT_GB * 1e9)) -> None:
        self.place, self.limit = place, limit
        self.folder = place / "steps"
        self._usable = True

    def find(self, key: Key) -> Kept | None:
        """Return an entry, or None if there is none that can be trusted."""
        path = self._path(key.name)
        seen = _seen(path) if self._ready() else None
        if seen is None:
            return None
        try:
            kept, about = _read(path)
            if about["key"] != key.name:
                raise UserError(f"{path} holds another entry.")
        except UserError as error:
            if _seen(path) == seen:  # else another process has removed or replaced it meanwhile
                log.warning("An entry of the cache is damaged and made again: %s", error)
                self._remove(path)
            return None
        with contextlib.suppress(OSError):  # a folder that cannot be written to may still be read
            os.utime(path)
        return kept

    def keep(self, key: Key, kept: Kept, *, step: str) -> None:
        """Write an entry; where that fails, say so once and go on without.

        Raises:
            ValueError: a value that JSON cannot hold.
        """
        value = json.loads(artifacts.dump_json(kept.value))  # as it will be read back, the order of its keys included
        if not self._ready() or sum(t.nbytes for t in kept.tensors.values()) > self.limit:
            return
        about = {"format": FORMAT, "key": key.name, "step": step, "model": key.model, "value": value}
        try:
            artifacts.save_tensors(self._path(key.name), kept.tensors, {**about, "sha256": _checksum(about, kept.tensors)})
            self._evict()
        except (UserError, OSError) as error:
            self._give_up(error)

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, the one used last first."""
        found = sorted(self._files(), key=lambda item: item[1].st_mtime, reverse=True)
        return tuple(_entry(path, stat) for path, stat in found)

    def clear(self) -> tuple[int, int]:
        """Remove every entry and every unfinished file; return how many files went and their bytes. Nothing else is touched."""
        files = [*self._files(), *self._files(f".*{_ENDING}.*.tmp")]
        for path, _ in files:
            self._remove(path)
        gone = [stat.st_size for path, stat in files if not path.exists()]
        return len(gone), sum(gone)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"

    def _ready(self) -> bool:
        """Make the folder, for its user alone, and say whether it can be used."""
        if not self._usable:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self.folder.stat()
            if os.name == "posix" and found.st_uid != os.geteuid():
                raise OSError(f"{self.folder} belongs to another user, whose entries are not to be trusted")
            if os.name == "posix" and found.st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            self._give_up(error)
        return self._usable

    def _evict(self) -> None:
        for path, stat in self._files(f".*{_ENDING}.*.tmp"):
            if time.time() - stat.st_mtime > _UNFINISHED:
                self._remove(path)
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        surplus = sum(stat.st_size for _, stat in files) - self.limit
        for path, stat in files:
            if surplus <= 0:
                break
            self._remove(path)
            surplus -= stat.st_size

    def _files(self, pattern: str = f"[!.]*{_ENDING}") -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process removes files, too
                yield path, path.stat()

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s.", path, error.strerror)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        log.warning("Going on without the cache in %s: %s", self.place, str(error).removesuffix("."))


def remember(cache: Cache | None, key: Key | None, compute: Callable[[], Kept], *, step: str) -> Kept:
    """Return what the cache holds under the key; without that (or without cache or key) what is computed, which is then kept."""
    found = cache.find(key) if cache and key else None
    if found is None:
        found = compute()
        if cache and key:
            cache.keep(key, found, step=step)
    return found


def open_cache() -> Cache:
    """Return the user's cache: in `RESECT_CACHE`, or else under the folder for caches, of at most `RESECT_CACHE_GB` gigabytes (5 if unset).

    Raises:
        UserError: a limit that is no positive number.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = os.environ.get(PLACE) or Path(caches) / "resect"
    given = os.environ.get(SIZE) or str(DEFAULT_GB)
    try:
        limit = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise UserError(f"{SIZE} is {given!r}, which is no positive number of gigabytes; give one, leave it unset, or use --no-cache.")
    return Cache(Path(place).expanduser(), limit=limit)


def _seen(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from one that replaced it; None if there is none to read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path) -> tuple[Kept, dict[str, Any]]:
    """Return an entry and its header; raises `UserError` if anything in it is not as it was written."""
    tensors, header = artifacts.load_tensors(path, format=FORMAT)
    told = header.pop("sha256", None)
    if {"key", "step", "model", "value"} - set(header) or told != _checksum(header, tensors):
        raise UserError(f"The checksum of {path} does not fit its content.")
    return Kept(header["value"], tensors), header


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return digest([dict(sorted(about.items())), dict(sorted(tensors.items()))])


def _entry(path: Path, stat: os.stat_result) -> Entry:
    try:
        about = artifacts.read_header(path, format=FORMAT)
        step, model = str(about.get("step")), str(about.get("model"))
    except UserError:
        step = model = None
    return Entry(path.name.removesuffix(_ENDING), step, model, stat.st_size, stat.st_mtime)
