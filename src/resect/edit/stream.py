"""An edit written into a checkpoint on disk, shard by shard: the model is never in memory, and the original is never written to."""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from resect import artifacts
from resect.edit.bake import BakeReport, ParameterChange, Untouched
from resect.edit.copies import Copies, stamp
from resect.edit.hooks import matched
from resect.edit.output import JOB, JOURNAL, check_out, partial_of
from resect.edit.pieces import Measured, Piece
from resect.edit.plan import EditPlan, WriterEdit
from resect.edit.proof import FILE
from resect.edit.shards import overwrite, reads_back, settle
from resect.errors import UserError
from resect.models.blockwise import skeleton_writers
from resect.models.checkpoint import PLAIN
from resect.models.files import INDEX, Shard, file_in
from resect.models.keys import stored_parts
from resect.models.quantised import check_plain
from resect.models.skeleton import SIDE_FILES, Skeleton, open_skeleton
from resect.models.writers import Writer, WriterParameter

FORMAT = "resect.stream/1"
_AT_ONCE = 3  # shards; each holds one tensor in memory, and two compute while one waits for the disk

Describe = Callable[["StreamReport"], Mapping[str, str]]


@dataclass(frozen=True)
class StreamReport(BakeReport):
    """Of every changed parameter what was asked for and what was measured; `expected` is ||gamma U C^T W|| / ||W|| by parameter."""

    expected: tuple[float, ...]


def stream(
    source: str | Path | Skeleton,
    plan: EditPlan,
    out: Path,
    *,
    writers: Sequence[Writer] | None = None,
    describe: Describe | None = None,
    copies: Copies | None = None,
    step: Callable[[str], None] = lambda _name: None,
) -> StreamReport:
    """Write the checkpoint with the plan's edits to the new folder `out`, as `bake` and `save_edited` would, without loading it.

    Only the bytes of the writers' tensors differ from the source; dtypes, layout, headers, index and side files (tokenizer, templates,
    settings) are kept. Memory: one tensor, or one block in float32 where `writers` (`skeleton_writers`) have to be found. Files are
    written beside `out` and read back, and the folder is renamed at the end; the same call continues one that was killed, and its
    bytes are those of a call that was not. `describe` returns further files, name to text, from the report; `copies` are those of this
    source that were begun ahead for this output (`copied_ahead`).

    Raises:
        UserError: what `open_skeleton` and `skeleton_writers` raise, an output that exists or lies in the source, a plan for another
            model, parameters that are shared, quantised or not finite; nothing is left then. A full disk leaves what was written.
    """
    skeleton = source if isinstance(source, Skeleton) else open_skeleton(source)
    out = check_out(skeleton.checkpoint.folder, out)
    known = skeleton_writers(skeleton) if writers is None else tuple(writers)
    pieces = _pieces(skeleton, known, plan)
    partial = partial_of(out)
    if copies is not None and copies.partial != partial:
        raise ValueError(f"copies in {copies.partial} were begun for another output than {out}")
    try:
        _open(partial, _job(skeleton, plan), begun=copies is not None)
        copies = copies or Copies(_missing(skeleton, partial), partial)
        measured = _shards(skeleton, pieces, copies, step)
        report = _report(known, plan, pieces, measured)
        _side_files(skeleton, partial)
        for name, text in (describe(report) if describe else {}).items():
            artifacts.write_text(partial / name, text)
        _finish(partial, out)
    except UserError:
        if copies is not None:
            copies.stop()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}; free some space and give the same command again, it continues from "
            f"{partial}."
        ) from error
    return report


def _pieces(skeleton: Skeleton, writers: Sequence[Writer], plan: EditPlan) -> tuple[Piece, ...]:
    """Return every stored tensor that the plan changes."""
    pieces = []
    for writer, edit in matched(writers, plan, d_model=skeleton.d_model):
        for described in writer.parameters:
            if described.name in skeleton.shared:
                raise UserError(
                    f"Parameter {described.name} of writer {writer.name} is shared with another part of the network, which the edit would "
                    "change as well; apply the edit by hooks."
                )
            _check_dtype(skeleton, described.name)
            pieces += _pieces_of(skeleton, described, edit)
    return tuple(pieces)


def _pieces_of(skeleton: Skeleton, described: WriterParameter, edit: WriterEdit) -> list[Piece]:
    name, stored = described.name, {tensor.key: tensor for tensor in skeleton.stored(described.name)}
    layout, keys = stored_parts(
        skeleton.origins[name],
        described.layout,
        name=name,
        shape=skeleton.shapes[name],
        stored={key: tensor.shape for key, tensor in stored.items()},
        config=skeleton.network.config,
    )
    return [Piece(stored[key], layout, edit, name) for key in keys]


def _check_dtype(skeleton: Skeleton, name: str) -> None:
    tensors = skeleton.checkpoint.tensors
    origin = skeleton.origin(name)
    stored = tuple(tensors[key] for key in origin.keys) if origin is not None else ()
    if skeleton.quantised is not None:
        check_plain(skeleton.name, skeleton.quantised, parameter=name, stored=stored, keys=tensors)
    for tensor in stored:
        if tensor.dtype not in PLAIN:
            raise UserError(
                f"Tensor {tensor.key} of {skeleton.name} has dtype {tensor.dtype}, and {', '.join(PLAIN)} can be edited; save it in "
                "one of them."
            )


def _job(skeleton: Skeleton, plan: EditPlan) -> dict[str, Any]:
    """Return what decides the bytes of the output: the source files as they stand, and the edit."""
    tensors, description = plan.to_tensors()
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    files = {}
    for shard in skeleton.checkpoint.shards:
        found = shard.path.stat()
        files[shard.name] = [found.st_size, found.st_mtime_ns]
    return {"format": FORMAT, "source": str(skeleton.checkpoint.folder.resolve()), "files": files, "edit": digest.hexdigest()}


def _open(partial: Path, job: Mapping[str, Any], *, begun: bool) -> None:
    """Keep an unfinished output of the same job, and clear one of another; `begun` copies belong to no job yet."""
    known = partial / JOURNAL / JOB
    try:
        same = known.is_file() and json.loads(known.read_text(encoding="utf-8")) == job
    except ValueError:
        same = False
    if not same:
        if partial.exists() and not begun:
            shutil.rmtree(partial)
        (partial / JOURNAL).mkdir(parents=True)
        artifacts.write_json(known, job)
    strays = [] if begun else [*partial.glob(".*.tmp"), *(partial / JOURNAL).glob(".*.tmp")]
    for stray in strays:
        stray.unlink()


def _missing(skeleton: Skeleton, partial: Path) -> list[Shard]:
    return [shard for shard in skeleton.checkpoint.shards if not (partial / shard.name).is_file()]


def _shards(skeleton: Skeleton, pieces: Sequence[Piece], copies: Copies, step: Callable[[str], None]) -> tuple[Measured, ...]:
    by_shard: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_shard[piece.stored.shard].append(piece)
    # While the disk takes one shard in, others are computed, on one thread each: more than there are processors wait for one another.
    with _one_thread(), ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        jobs = [(shard.name, pool.submit(_shard, shard, copies, by_shard[shard.name])) for shard in skeleton.checkpoint.shards]
        try:
            measured: list[Measured] = []
            for name, job in jobs:
                step(name)
                measured += job.result()
        finally:
            copies.stop()
            pool.shutdown(cancel_futures=True)
    return tuple(measured)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shard(shard: Shard, copies: Copies, pieces: Sequence[Piece]) -> tuple[Measured, ...]:
    partial = copies.partial
    known = _known(shard, partial, pieces)
    if known is not None:
        return known
    copied, was = copies.of(shard)
    measured = overwrite(shard, copied, pieces)
    if stamp(shard.path) != was or was[1] != shard.size:
        raise UserError(f"{shard.path} changed while it was copied and edited; give the same command again once nothing writes to it.")
    settle(copied, partial / shard.name)
    artifacts.write_json(_journal(partial, shard), [asdict(item) for item in measured])
    return measured


def _known(shard: Shard, partial: Path, pieces: Sequence[Piece]) -> tuple[Measured, ...] | None:
    """Return what was measured of a shard that an earlier call finished, None if it did not or if the file does not hold it."""
    journal = _journal(partial, shard)
    if not journal.is_file() or not (partial / shard.name).is_file():
        return None
    try:
        rows = json.loads(journal.read_text(encoding="utf-8"))
        known = tuple(Measured(**(row | {"before": tuple(row["before"]), "after": tuple(row["after"])})) for row in rows)
    except (ValueError, TypeError, KeyError):
        return None
    return known if reads_back(shard, partial / shard.name, pieces, known) else None


def _journal(partial: Path, shard: Shard) -> Path:
    return partial / JOURNAL / f"{shard.name}.json"


def _side_files(skeleton: Skeleton, partial: Path) -> None:
    folder = skeleton.checkpoint.folder
    # The proof of another edit would be a lie here.
    names = {path.name for pattern in SIDE_FILES for path in folder.glob(pattern)} - {FILE}
    # An index beside a single file belongs to other weights.
    indexes = {name for name in names if name.endswith(".index.json")} - ({INDEX} if skeleton.checkpoint.indexed else set())
    for name in sorted(names - indexes):
        artifacts.write_bytes(partial / name, file_in(folder, name).read_bytes())


def _finish(partial: Path, out: Path) -> None:
    shutil.rmtree(partial / JOURNAL)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    artifacts.sync_folder(out.parent)


def _report(writers: Sequence[Writer], plan: EditPlan, pieces: Sequence[Piece], measured: Sequence[Measured]) -> StreamReport:
    by_key = {item.key: item for item in measured}
    changes, expected = [], []
    for name, group in groupby(pieces, key=lambda piece: piece.parameter):
        own = list(group)
        change, wanted = _change(name, own, [by_key[piece.stored.key] for piece in own])
        changes.append(change)
        expected.append(wanted)
    edited = {edit.writer for edit in plan.edits}
    untouched = tuple(Untouched(w.name, f"strength 0 at layer {w.layer}") for w in writers if w.name not in edited)
    return StreamReport(tuple(changes), untouched, tuple(expected))


def _change(name: str, pieces: Sequence[Piece], measured: Sequence[Measured]) -> tuple[ParameterChange, float]:
    edit, dtype = pieces[0].edit, PLAIN[pieces[0].stored.dtype]
    norm = sqrt(sum(m.total for m in measured)) or 1.0
    change, wanted = sqrt(sum(m.moved for m in measured)) / norm, sqrt(sum(m.expected for m in measured)) / norm
    if edit.preserve == "nothing" and abs(change - wanted) > max(torch.finfo(dtype).eps, 1e-5):
        raise UserError(
            f"The edit proof fails and nothing was saved: parameter {name} changed by {change:.3e} of its norm, and the edit asks for "
            f"{wanted:.3e}."
        )
    before, after = (
        [sum(m[k] for m in column) for k in range(edit.c.shape[1])]
        for column in ([m.before for m in measured], [m.after for m in measured])
    )
    left = tuple(sqrt(a / b) if b else 0.0 for a, b in zip(after, before, strict=True))
    return ParameterChange(name, edit.writer, edit.gamma, change, left), wanted
