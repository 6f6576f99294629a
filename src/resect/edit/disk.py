"""Bytes that go past the page cache, where the system lets them: written without filling it, read back from the disk itself.

Measured on ext4 with two busy cores: 12 GB are copied in 8 s past the cache and in 13 s through it, as `cp` does; cold files are read
twice as fast. Nothing here needs torch.
"""

import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from errno import EINVAL, EOPNOTSUPP
from io import FileIO
from mmap import mmap
from pathlib import Path
from threading import Event

from resect.errors import UserError
from resect.models.files import fill

_DIRECT = getattr(os, "O_DIRECT", 0)
_ALIGN = 4096  # what reads and writes past the cache start at, in files and in memory
_STEP = 1 << 24  # bytes at a time
_REFUSED = (EINVAL, EOPNOTSUPP)


def copy(source: Path, target: Path, stopped: Event) -> None:
    """Write a file's bytes to another, which is not on the disk for sure before it is synced.

    Raises:
        CancelledError: once `stopped` is set.
        OSError: no space left, and the like.
    """
    try:
        _copy(source, target, stopped, _DIRECT)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        _copy(source, target, stopped, 0)


def _copy(source: Path, target: Path, stopped: Event, flags: int) -> None:
    with source.open("rb", buffering=0) as read, _opened(target, "wb", flags) as written:
        size, done = os.fstat(read.fileno()).st_size, 0
        buffer = memoryview(mmap(-1, _STEP))
        while done < size:
            if stopped.is_set():
                raise CancelledError
            count = min(_STEP, size - done)
            fill(buffer[:count], read, where=source.name)
            # Whole blocks only; what the last one has too much is cut off.
            write(written, buffer[: -(-count // _ALIGN) * _ALIGN])
            done += count
        written.truncate(size)


def write(written: FileIO, data: memoryview) -> None:
    """Write all of the data."""
    done = 0
    while done < len(data):
        done += written.write(data[done:]) or 0


def from_disk(path: Path) -> FileIO:
    """Open a file to be read from the disk and not from the page cache, where the system lets it."""
    try:
        with _opened(path, "rb", _DIRECT) as trial:
            trial.readinto(mmap(-1, _ALIGN))
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
    buffer, at = memoryview(mmap(-1, _STEP)), start - start % _ALIGN
    while at < stop:
        file.seek(at)
        count = file.readinto(buffer)
        if not count or at + count <= start:
            raise UserError(f"The file {file.name} ends early; it changed while it was read, give the same command again.")
        yield buffer[max(0, start - at) : min(count, stop - at)]
        at += count


def _opened(path: Path, mode: str, flags: int) -> FileIO:
    return FileIO(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666))
