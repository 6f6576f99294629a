"""The shards of a checkpoint, copied in the background into an output that is not finished.

The disk is what an edit waits for, and the libraries that edit take seconds to import; so the copies begin before both. Nothing here needs
torch. Threads and no process of their own: a killed command stops writing at once, and what comes after it writes alone.
"""

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from resect.edit.disk import copy
from resect.edit.output import JOB, JOURNAL, check_out, partial_of
from resect.errors import UserError
from resect.models.files import Shard, open_files

Stamp = tuple[int, int, int]
"""What tells whether a file is still the one that it was: its inode, its size, and when it was written."""


class Copies:
    """Copies of shards under their temporary names, each made once, in order and in the background."""

    def __init__(self, shards: Iterable[Shard], partial: Path) -> None:
        self.partial = partial
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(1)
        self._jobs: dict[str, Future[Stamp]] = {}
        for shard in shards:
            self._begin(shard)

    def of(self, shard: Shard) -> tuple[Path, Stamp]:
        """Return the copy of a shard, once it is whole, and the stamp that its source had; raises `OSError` if it cannot be written."""
        job = self._jobs.get(shard.name) or self._begin(shard)
        return _temporary(self.partial, shard), job.result()

    def stop(self) -> None:
        """End all copying; what is not whole stays so."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def discard(self) -> None:
        """End all copying and remove what was copied."""
        self.stop()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _begin(self, shard: Shard) -> Future[Stamp]:
        self._jobs[shard.name] = self._pool.submit(self._copy, shard)
        return self._jobs[shard.name]

    def _copy(self, shard: Shard) -> Stamp:
        found = stamp(shard.path)
        copy(shard.path, _temporary(self.partial, shard), self._stopped)
        return found


def stamp(path: Path) -> Stamp:
    """Return the stamp of a file."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def copied_ahead(model: str, out: Path) -> Iterator[Copies | None]:
    """Begin to copy the shards of a local model for the output `out`, and give the copies to the `with` block.

    None if nothing was begun: the model is no folder, something is wrong with it or with the output (which the edit itself will say), or
    finished shards lie there from which an unfinished edit may go on. Whatever no job stands for is removed at the end.
    """
    copies = _begun(Path(model).expanduser(), out)
    try:
        yield copies
    finally:
        if copies is not None:
            copies.stop()
            if not (copies.partial / JOURNAL / JOB).exists():
                copies.discard()


def _begun(folder: Path, out: Path) -> Copies | None:
    try:
        shards = open_files(folder).shards
        partial = partial_of(check_out(folder, out))
        if any(partial.glob("*.safetensors")):
            return None
        if partial.exists():
            shutil.rmtree(partial)
        # Without parents: a folder more than was there would be left after an error.
        partial.mkdir()
    except (UserError, OSError):
        return None
    return Copies(shards, partial)


def _temporary(partial: Path, shard: Shard) -> Path:
    return partial / f".{shard.name}.tmp"
