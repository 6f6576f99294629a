"""Bytes that go past the page cache, where the system lets them: written without filling it, read back from the disk itself.

Measured on ext4, 12 GB that the cache holds: from mapped memory past the cache the copy takes 6.4 s and 0.3 s of a processor; through it,
as `cp` does, 8.1 s and 5.9 s. Nothing here needs torch.
"""

import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from errno import EINVAL, EOPNOTSUPP
from io import FileIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Event

from resect.errors import UserError

_DIRECT = getattr(os, "O_DIRECT", 0)
ALIGN = 4096  # what reads and writes past the cache start at, in files and in memory
_STEP = 1 << 24  # bytes at a time; a mapping counts as the process's memory
_REFUSED = (EINVAL, EOPNOTSUPP)


def copy(source: Path, target: Path, stopped: Event) -> None:
    """Write a file's bytes to another, which is not on the disk for sure before it is synced.

    Raises:
        UserError: if the file is cut short meanwhile.
        CancelledError: once `stopped` is set.
        OSError: no space left, and the like.
    """
    with source.open("rb", buffering=0) as read, Overwritten(target, "wb") as written:
        size = os.fstat(read.fileno()).st_size
        for start in range(0, size, _STEP):
            if stopped.is_set():
                raise CancelledError
            try:
                written.write(memoryview(mmap(read.fileno(), min(_STEP, size - start), access=ACCESS_READ, offset=start)), start)
            except (ValueError, OSError) as error:
                # Of mapped memory that is no longer there the system says ValueError or EFAULT.
                if os.fstat(read.fileno()).st_size < size:
                    raise UserError(
                        f"{source} changed while it was copied; give the same command again once nothing writes to it."
                    ) from error
                raise


class Overwritten(ExitStack):
    """A file whose bytes are written at any place: whole blocks past the page cache, the ends of what is no whole block through it."""

    def __init__(self, path: Path, mode: str = "r+b") -> None:
        super().__init__()
        self._plain = self.enter_context(_opened(path, mode, 0))
        try:
            self._direct = self.enter_context(_opened(path, "r+b", _DIRECT))
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._direct = self._plain

    def write(self, data: memoryview, at: int) -> None:
        """Write the data at a place; in memory it should stand as far behind a multiple of the block (`room`) as in the file."""
        stop = at + len(data)
        first = min(stop, -(-at // ALIGN) * ALIGN)
        last = max(first, stop // ALIGN * ALIGN)
        _write(self._plain, data[: first - at], at)
        try:
            _write(self._direct, data[first - at : last - at], first)
        except OSError as error:
            if error.errno not in _REFUSED or self._direct is self._plain:
                raise
            self._direct = self._plain
            _write(self._direct, data[first - at : last - at], first)
        _write(self._plain, data[last - at :], last)

    def sync(self) -> None:
        """Wait until every byte is on the disk."""
        os.fsync(self._plain.fileno())


def room(memory: mmap, count: int, at: int) -> memoryview:
    """Return the part of some memory where bytes should stand that `Overwritten` will write at a place; it takes up to `ALIGN` more."""
    before = at % ALIGN
    return memoryview(memory)[before : before + count]


def _write(file: FileIO, data: memoryview, at: int) -> None:
    file.seek(at)
    done = 0
    while done < len(data):
        done += file.write(data[done:]) or 0


def from_disk(path: Path) -> FileIO:
    """Open a file to be read from the disk and not from the page cache, where the system lets it."""
    try:
        with _opened(path, "rb", _DIRECT) as trial:
            trial.readinto(mmap(-1, ALIGN))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return _opened(path, "rb", 0)
    return _opened(path, "rb", _DIRECT)


def chunks(file: FileIO, start: int, stop: int) -> Iterator[memoryview]:
    """Read the bytes from `start` to `stop`, a part at a time; each is overwritten by the next.

    Raises:
        UserError: if the file ends before.
    """
    buffer, at = memoryview(mmap(-1, _STEP)), start - start % ALIGN if stop > start else stop
    while at < stop:
        file.seek(at)
        count = file.readinto(buffer)
        if not count or at + count <= start:
            raise UserError(f"The file {file.name} ends early; it changed while it was read, give the same command again.")
        yield buffer[max(0, start - at) : min(count, stop - at)]
        at += count


def cut(data: memoryview, at: int) -> Iterator[memoryview]:
    """Return the parts of the data in which `chunks` reads what stands at that place."""
    first = _STEP - at % ALIGN
    yield from (data[max(0, start) : start + _STEP] for start in range(first - _STEP, len(data) if data else -_STEP, _STEP))


def _opened(path: Path, mode: str, flags: int) -> FileIO:
    return FileIO(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666))
