"""One file of a checkpoint written anew: the bytes of the edited tensors replaced, every other byte as it was; read back and measured."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from resect.artifacts import sync_folder
from resect.edit.bake import edited_weight
from resect.edit.plan import WriterEdit
from resect.errors import UserError
from resect.layout import OUTPUT_AXIS, Layout
from resect.models.checkpoint import PLAIN, Shard, Stored, fill

_COPY = 1 << 23  # bytes at a time
_SLICE = 3 << 22  # numbers at a time: 48 MiB in float32, of which the algebra holds a few


@dataclass(frozen=True, eq=False)
class Piece:
    """A stored tensor to be edited, its layout on disk, and the parameter of the network that it belongs to."""

    stored: Stored
    layout: Layout
    edit: WriterEdit
    parameter: str


@dataclass(frozen=True)
class Measured:
    """What was written for one piece, as sums: |W|^2, |W' - W|^2, |c^T W|^2 and |c^T W'|^2 for each column c, gamma^2 |U C^T W|^2.

    `crc` is the CRC-32 of the bytes.
    """

    key: str
    total: float = 0.0
    moved: float = 0.0
    before: tuple[float, ...] = field(default=())
    after: tuple[float, ...] = field(default=())
    expected: float = 0.0
    crc: int = 0


def rewrite(shard: Shard, temporary: Path, pieces: Sequence[Piece]) -> tuple[Measured, ...]:
    """Write the shard with its pieces edited under a temporary name, which `settle` makes final, and return what was done.

    Raises:
        UserError: NaN or infinity in a tensor that is edited, or that its edit would make.
        OSError: no space left, and the like.
    """
    measured = []
    with shard.path.open("rb", buffering=0) as source, temporary.open("wb", buffering=0) as written:
        for piece in _in_order(pieces):
            _copy(source, written, piece.stored.start - written.tell())
            measured.append(_write_piece(source, written, piece))
            source.seek(written.tell())
        _copy(source, written, shard.size - written.tell())
    return tuple(measured)


def settle(temporary: Path, target: Path) -> None:
    """Give a written file its final name once every byte of it is on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    sync_folder(target.parent)


def reads_back(shard: Shard, written: Path, pieces: Sequence[Piece], measured: Sequence[Measured]) -> bool:
    """Return whether the file holds what `rewrite` wrote: the edited bytes by their checksum, every other byte as in the source."""
    if written.stat().st_size != shard.size or [m.key for m in measured] != [p.stored.key for p in _in_order(pieces)]:
        return False
    with shard.path.open("rb", buffering=0) as source, written.open("rb", buffering=0) as file:
        for piece, known in zip(_in_order(pieces), measured, strict=True):
            if not _same(source, file, piece.stored.start - file.tell()):
                return False
            crc = 0
            for chunk in _chunks(file, piece.stored.stop - piece.stored.start, where=piece.stored.key):
                crc = zlib.crc32(chunk, crc)
            if crc != known.crc:
                return False
            source.seek(file.tell())
        return _same(source, file, shard.size - file.tell())


def _in_order(pieces: Sequence[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: piece.stored.start)


def _write_piece(source: FileIO, written: FileIO, piece: Piece) -> Measured:
    measured = Measured(piece.stored.key, before=(0.0,) * piece.edit.c.shape[1], after=(0.0,) * piece.edit.c.shape[1])
    for old in _blocks(source, piece):
        new = torch.empty_like(old)
        for columns in _slices(old, piece):
            before = old[columns]
            after = edited_weight(before, piece.layout, piece.edit)
            _check_finite(piece, before, after)
            new[columns] = after
            measured = _added(measured, piece, before, after)
        data = new.reshape(-1).view(torch.uint8).numpy().data
        measured = _replaced(measured, crc=zlib.crc32(data, measured.crc))
        _write(written, data)
    return measured


def _blocks(source: FileIO, piece: Piece) -> Iterator[Tensor]:
    """Read a tensor in blocks of its first axis, or whole where its outputs (or norms to be kept) run along that."""
    stored = piece.stored
    whole = OUTPUT_AXIS[piece.layout] == 0 or (piece.edit.preserve == "row" and len(stored.shape) < 3)
    rows, inner = next(iter(stored.shape)), stored.shape[1:]  # a writer has an axis of outputs
    step = rows if whole else max(1, _SLICE // max(1, prod(inner)))
    for first in range(0, rows, max(1, step)):
        count = min(step, rows - first)
        data = bytearray(count * stored.row_bytes)
        fill(data, source, where=stored.key)
        yield torch.frombuffer(data, dtype=PLAIN[stored.dtype]).reshape(count, *inner)


def _slices(block: Tensor, piece: Piece) -> Iterator[tuple[slice, ...]]:
    """Slice a block along its second axis where its outputs run along the first: the edit treats each input by itself."""
    if piece.layout != "out_in" or piece.edit.preserve == "row":
        yield (slice(None),)
        return
    step = max(1, _SLICE // block.shape[0])
    for first in range(0, block.shape[1], step):
        yield slice(None), slice(first, first + step)


def _check_finite(piece: Piece, before: Tensor, after: Tensor) -> None:
    for value, what in ((before, "holds"), (after, "would hold, once edited,")):
        if not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            raise UserError(
                f"Tensor {piece.stored.key} of {piece.stored.shard} {what} NaN or infinity; get the checkpoint again, or one in a wider "
                "dtype."
            )


def _added(measured: Measured, piece: Piece, before: Tensor, after: Tensor) -> Measured:
    wide = torch.float64 if before.numel() <= 1 << 20 else torch.float32
    old, new = before.to(wide), after.to(wide)
    u, c = piece.edit.u.double(), piece.edit.c.double()
    was, now = (_gram(value, piece.layout, c.to(wide)) for value in (old, new))
    expected = piece.edit.gamma**2 * float((was * (u.T @ u)).sum())
    return Measured(
        measured.key,
        total=measured.total + float(old.square().sum()),
        moved=measured.moved + float((new - old).square().sum()),
        before=tuple(a + b for a, b in zip(measured.before, was.diagonal().tolist(), strict=True)),
        after=tuple(a + b for a, b in zip(measured.after, now.diagonal().tolist(), strict=True)),
        expected=measured.expected + expected,
        crc=measured.crc,
    )


def _replaced(measured: Measured, *, crc: int) -> Measured:
    return Measured(measured.key, measured.total, measured.moved, measured.before, measured.after, measured.expected, crc)


def _gram(value: Tensor, layout: Layout, c: Tensor) -> Tensor:
    """Return (C^T W) (C^T W)^T."""
    components = (value.movedim(OUTPUT_AXIS[layout], -1) @ c).reshape(-1, c.shape[1]).double()
    return components.T @ components


def _copy(source: FileIO, written: FileIO, count: int) -> None:
    for chunk in _chunks(source, count, where=str(source.name)):
        _write(written, chunk)


def _write(written: FileIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += written.write(data[done:]) or 0


def _same(first: FileIO, second: FileIO, count: int) -> bool:
    pairs = zip(_chunks(first, count, where=str(first.name)), _chunks(second, count, where=str(second.name)), strict=True)
    return all(a == b for a, b in pairs)


def _chunks(file: FileIO, count: int, *, where: str) -> Iterator[memoryview]:
    """Read `count` bytes in pieces; each is overwritten by the next."""
    buffer = memoryview(bytearray(min(count, _COPY)))
    while count:
        chunk = buffer[: min(count, _COPY)]
        fill(chunk, file, where=where)
        yield chunk
        count -= len(chunk)
