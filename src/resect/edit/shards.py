"""One file of a checkpoint, copied, and then edited where the edited tensors stand: every other byte as it was; and read back."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import FileIO
from mmap import mmap
from pathlib import Path

import numpy as np

from resect.artifacts import sync_folder
from resect.edit.disk import ALIGN, Overwritten, chunks, cut, from_disk, room
from resect.edit.pieces import Measured, Piece, edit_piece
from resect.errors import UserError
from resect.models.files import Shard, fill


def overwrite(shard: Shard, copied: Path, pieces: Sequence[Piece]) -> tuple[Measured, ...]:
    """Edit the pieces in a copy of the shard until all of it is on the disk, read them back, and return what was done.

    Raises:
        UserError: NaN or infinity in a tensor that is edited, or that its edit would make; edited bytes that read back otherwise.
        OSError: no space left, and the like.
    """
    measured, most = [], max((piece.stored.stop - piece.stored.start for piece in pieces), default=0)
    # Measured: new memory for every piece takes longer than reading into it.
    memory = mmap(-1, most + ALIGN)
    with shard.path.open("rb", buffering=0) as source, Overwritten(copied) as written, from_disk(copied) as back:
        for piece in _in_order(pieces):
            measured.append(_edit(piece, memory, source, written, back))
        written.sync()
    return tuple(measured)


def settle(copied: Path, target: Path) -> None:
    """Give a file that is on the disk its final name."""
    copied.replace(target)
    sync_folder(target.parent)


def reads_back(shard: Shard, written: Path, pieces: Sequence[Piece], measured: Sequence[Measured]) -> bool:
    """Return whether a file holds what `overwrite` made of the shard: edited bytes by their checksum, all others as in the source."""
    if written.stat().st_size != shard.size or [m.key for m in measured] != [p.stored.key for p in _in_order(pieces)]:
        return False
    at = 0
    with shard.path.open("rb", buffering=0) as source, from_disk(written) as file:
        for piece, known in zip(_in_order(pieces), measured, strict=True):
            start, stop = piece.stored.start, piece.stored.stop
            if not _same(chunks(source, at, start), chunks(file, at, start)) or _checksum(chunks(file, start, stop)) != known.crc:
                return False
            at = stop
        return _same(chunks(source, at, shard.size), chunks(file, at, shard.size))


def _in_order(pieces: Sequence[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.stored.start)


def _edit(piece: Piece, memory: mmap, source: FileIO, written: Overwritten, back: FileIO) -> Measured:
    crc, at = 0, piece.stored.start

    def read(count: int) -> memoryview:
        data = room(memory, count, at)
        fill(data, source, where=piece.stored.key)
        return data

    def write(data: memoryview) -> None:
        nonlocal crc, at
        crc = zlib.crc32(data, crc)
        written.write(data, at)
        written.sync()
        if not _same(cut(data, at), chunks(back, at, at + len(data))):
            raise UserError(
                f"Tensor {piece.stored.key} of {piece.stored.shard} reads back otherwise than it was written; the disk or the memory is at "
                "fault, nothing was kept."
            )
        at += len(data)

    source.seek(at)
    return replace(edit_piece(piece, read, write), crc=crc)


def _checksum(parts: Iterable[memoryview]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _same(first: Iterable[memoryview], second: Iterable[memoryview]) -> bool:
    # Measured: comparing views byte by byte is six times slower.
    return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in zip(first, second, strict=True))
