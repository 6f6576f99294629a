"""One stored tensor edited on its way from file to file, a tile at a time, and measured as it is stored."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite, prod

import torch
from torch import Tensor

from resect.edit.algebra import apply_to_output, apply_to_rows
from resect.edit.bake import edited_weight
from resect.edit.plan import WriterEdit
from resect.errors import UserError
from resect.layout import OUTPUT_AXIS, Layout
from resect.models.checkpoint import PLAIN
from resect.models.files import Stored

# Numbers at a time. Measured: in float32 they stay in the processor's cache, and an edit is many times as fast as on whole tensors.
_TILE = 1 << 17


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


@dataclass(frozen=True, eq=False)
class _Sums:
    """The sums of `Measured` over a part: |W|^2, |W' - W|^2, (C^T W)(C^T W)^T and the same of W'."""

    total: float
    moved: float
    before: Tensor
    after: Tensor

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(self.total + other.total, self.moved + other.moved, self.before + other.before, self.after + other.after)


def edit_piece(piece: Piece, read: Callable[[int], memoryview], write: Callable[[memoryview], None]) -> Measured:
    """Read a tensor's bytes in order, write them edited, and return the sums; the checksum is the writer's.

    Memory: the tensor, or one of its matrices if it is a stack of those, in its own dtype; a tile of it in float32. The algebra is that of
    `algebra.apply_to_weight`, in float32.

    Raises:
        UserError: NaN or infinity in the tensor, or in what the edit makes of it.
    """
    rank = piece.edit.c.shape[1]
    sums = _Sums(0.0, 0.0, torch.zeros(rank, rank, dtype=torch.float64), torch.zeros(rank, rank, dtype=torch.float64))
    for shape in _parts(piece):
        data = read(prod(shape) * PLAIN[piece.stored.dtype].itemsize)
        part = torch.frombuffer(data, dtype=PLAIN[piece.stored.dtype]).reshape(shape)
        if piece.edit.preserve != "nothing":
            found = _edit_whole(part, piece)
        elif OUTPUT_AXIS[piece.layout] == len(piece.stored.shape) - 1:
            found = _edit_inputs(part, piece.edit)
        else:
            found = _edit_outputs(part, piece.edit)
        _check_finite(piece, part, found)
        sums = sums + found
        write(data)
    u = piece.edit.u.double()
    expected = piece.edit.gamma**2 * float((sums.before * (u.T @ u)).sum())
    before, after = (tuple(gram.diagonal().tolist()) for gram in (sums.before, sums.after))
    return Measured(piece.stored.key, sums.total, sums.moved, before, after, expected)


def _parts(piece: Piece) -> list[tuple[int, ...]]:
    """Return the shapes of what is read at a time: each matrix of a stack, or the rows of a tile where every row is edited by itself."""
    shape = piece.stored.shape
    if piece.edit.preserve != "nothing" or OUTPUT_AXIS[piece.layout] != len(shape) - 1:
        return [shape] if len(shape) < 3 else [(1, *shape[1:])] * shape[0]
    rows, width = prod(shape[:-1]), shape[-1]
    step = max(1, 128 * _TILE // width)
    return [(min(step, rows - first), width) for first in range(0, rows, step)]


def _edit_inputs(part: Tensor, edit: WriterEdit) -> _Sums:
    """Edit rows that are outputs each, in place."""
    u, c = edit.u, edit.c
    sums = []
    for rows in part.split(max(1, _TILE // part.shape[1])):
        old = rows.to(torch.float32, copy=True)
        rows.copy_(apply_to_output(old, u=u, c=c, gamma=edit.gamma))
        new = rows.float()
        sums.append(_Sums(*_norms(old, new), _gram((old @ c).T), _gram((new @ c).T)))
    return sum(sums[1:], start=sums[0])


def _edit_outputs(part: Tensor, edit: WriterEdit) -> _Sums:
    """Edit a matrix whose rows belong to one output each, in place: first C^T W, then row by row."""
    matrix = part.reshape(-1, part.shape[-1])
    step = max(1, _TILE // matrix.shape[1])
    tiles = list(zip(matrix.split(step), edit.u.split(step), edit.c.split(step), strict=True))
    # Measured: in memory that is used again an edit is more than twice as fast as in new tensors.
    before, work = torch.zeros(edit.c.shape[1], matrix.shape[1]), torch.empty(2, step, matrix.shape[1])
    for rows, _, c in tiles:
        before.addmm_(c.T, work[0, : len(rows)].copy_(rows))
    after, total, moved = torch.zeros_like(before), 0.0, 0.0
    for rows, u, c in tiles:
        old, new = work[:, : len(rows)]
        old.copy_(rows)
        rows.copy_(apply_to_rows(old, u=u, read=before, gamma=edit.gamma, out=new))
        new.copy_(rows)
        after.addmm_(c.T, new)
        total += float(torch.linalg.vector_norm(old)) ** 2
        moved += float(torch.linalg.vector_norm(new.sub_(old))) ** 2
    return _Sums(total, moved, _gram(before), _gram(after))


def _edit_whole(part: Tensor, piece: Piece) -> _Sums:
    """Edit a tensor, or one matrix of a stack, in place where norms are kept: those are known from the whole of it only."""
    new = edited_weight(part, piece.layout, piece.edit)
    axis, c = OUTPUT_AXIS[piece.layout], piece.edit.c
    grams = [_gram((value.float().movedim(axis, -1) @ c).reshape(-1, c.shape[1]).T) for value in (part, new)]
    sums = _Sums(*_norms(part.float(), new.float()), *grams)
    part.copy_(new)
    return sums


def _norms(old: Tensor, new: Tensor) -> tuple[float, float]:
    return float(torch.linalg.vector_norm(old)) ** 2, float(torch.linalg.vector_norm(new - old)) ** 2


def _gram(components: Tensor) -> Tensor:
    wide = components.double()
    return wide @ wide.T


def _check_finite(piece: Piece, edited: Tensor, sums: _Sums) -> None:
    # The norms tell at once; only where they do not is every number looked at.
    if isfinite(sums.total) and (isfinite(sums.moved) or bool(torch.isfinite(edited).all())):
        return
    what = "would hold, once edited," if isfinite(sums.total) else "holds"
    raise UserError(
        f"Tensor {piece.stored.key} of {piece.stored.shard} {what} NaN or infinity; get the checkpoint again, or one in a wider dtype."
    )
