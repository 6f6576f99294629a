"""One file of a checkpoint, copied, and then edited where the edited tensors stand: every other byte as it was; and read back."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np

from resect.artifacts import sync_folder
from resect.edit.disk import Overwritten, chunks, from_disk, room
from resect.edit.pieces import Measured, Piece, edit_piece
from resect.models.files import Shard, fill


def overwrite(shard: Shard, copied: Path, pieces: Sequence[Piece]) -> tuple[Measured, ...]:
    """Edit the pieces in a copy of the shard, until all of it is on the disk, and return what was done.

    Raises:
        UserError: NaN or infinity in a tensor that is edited, or that its edit would make.
        OSError: no space left, and the like.
    """
    with shard.path.open("rb", buffering=0) as source, Overwritten(copied) as written:
        measured = tuple(_edit(source, written, piece) for piece in _in_order(pieces))
        written.sync()
    return measured


def settle(copied: Path, target: Path) -> None:
    """Give a file that is on the disk its final name."""
    copied.replace(target)
    sync_folder(target.parent)


def reads_back(shard: Shard, written: Path, pieces: Sequence[Piece], measured: Sequence[Measured], *, whole: bool) -> bool:
    """Return whether the disk holds what `overwrite` wrote: the edited bytes by their checksum, if `whole` all others as in the source."""
    if written.stat().st_size != shard.size or [m.key for m in measured] != [p.stored.key for p in _in_order(pieces)]:
        return False
    at = 0
    with shard.path.open("rb", buffering=0) as source, from_disk(written) as file:
        for piece, known in zip(_in_order(pieces), measured, strict=True):
            if whole and not _same(source, file, at, piece.stored.start):
                return False
            if _checksum(file, piece) != known.crc:
                return False
            at = piece.stored.stop
        return not whole or _same(source, file, at, shard.size)


def _in_order(pieces: Sequence[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.stored.start)


def _edit(source: FileIO, written: Overwritten, piece: Piece) -> Measured:
    crc, at = 0, piece.stored.start

    def read(count: int) -> memoryview:
        data = room(count, at)
        fill(data, source, where=piece.stored.key)
        return data

    def put(data: memoryview) -> None:
        nonlocal crc, at
        crc = zlib.crc32(data, crc)
        written.write(data, at)
        at += len(data)

    source.seek(at)
    return replace(edit_piece(piece, read, put), crc=crc)


def _checksum(file: FileIO, piece: Piece) -> int:
    crc = 0
    for chunk in chunks(file, piece.stored.start, piece.stored.stop):
        crc = zlib.crc32(chunk, crc)
    return crc


def _same(first: FileIO, second: FileIO, start: int, stop: int) -> bool:
    pairs = zip(chunks(first, start, stop), chunks(second, start, stop), strict=True)
    # Measured: comparing views byte by byte is six times slower.
    return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs)
