"""The files of a safetensors checkpoint as checked values: which tensor lies where, nothing believed before it is checked.

A safetensors file is: 8 bytes N (little-endian), N bytes of JSON, then the tensors' bytes. The JSON maps each name to its dtype, its
shape and its begin and end after the header; `__metadata__` holds text. Here the tensors must fill the file without holes or overlaps.
Nothing here needs torch, so that files can be checked, and copied, while it is still being imported.
"""

import json
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from resect.errors import UserError

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"

_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_MAX_JSON = 1 << 28
_MAX_SIDE, _MAX_AXES = 1 << 62, 64
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,240}\.safetensors")
# total_size counts other dtypes or shared tensors in some published checkpoints; far beyond that it is no honest number.
_SIZE_FACTOR = 16

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32}
BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)


@dataclass(frozen=True)
class Stored:
    """One tensor: its key, shard, dtype and shape, and which bytes of the shard are its own."""

    key: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis (of all of it, for a scalar)."""
        return (self.stop - self.start) // max(1, self.shape[0] if self.shape else 1)


@dataclass(frozen=True)
class Shard:
    """One file; `tensors` are in the order of their bytes."""

    name: str
    path: Path
    size: int
    tensors: tuple[Stored, ...]


@dataclass(frozen=True, eq=False)
class Files:
    """A folder of safetensors shards with its config.json, checked; `tensors` holds every key."""

    folder: Path
    shards: tuple[Shard, ...]
    config: dict[str, Any] = field(repr=False)
    indexed: bool
    tensors: Mapping[str, Stored] = field(repr=False)

    def path(self, shard: str) -> Path:
        """Return where a shard lies."""
        return next(s.path for s in self.shards if s.name == shard)


def fill(data: bytearray | memoryview, file: FileIO, *, where: str) -> None:
    """Fill `data` from where an unbuffered file stands; raises `UserError` if the file ends before."""
    view, done = memoryview(data), 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise UserError(f"The file with {where} ends early; it changed while it was read, get the checkpoint again.")
        done += count


def open_files(folder: Path) -> Files:
    """Return the checkpoint in a folder, every header checked; no tensor is read.

    `model.safetensors` wins over an index, as in transformers. Files may be symbolic links only within the folder or, in a snapshot of
    the Hub cache, to that repository's blobs.

    Raises:
        UserError: whatever is wrong with a path, the index or a header.
    """
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}; give an existing folder or a Hub id such as owner/name.")
    config = read_object(file_in(folder, CONFIG))
    indexed = not _lies(folder / SINGLE)
    weight_map = _weight_map(folder) if indexed else {}
    names = sorted(set(weight_map.values())) if indexed else [SINGLE]
    shards = tuple(_read_shard(folder, name) for name in names)
    tensors = _by_key(folder, shards)
    if indexed:
        _check_index(folder, weight_map, tensors)
    return Files(folder, shards, config, indexed, tensors)


def file_in(folder: Path, name: str) -> Path:
    """Return the path of a regular file of the folder.

    Raises:
        UserError: if it is missing, no regular file, or a link out of the folder and, in the Hub cache, out of the repository's blobs.
    """
    path = folder / name
    if not _lies(path):
        raise UserError(f"{folder} has no {name}; get the complete checkpoint, with config.json and its weights as safetensors.")
    real = path.resolve()
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        allowed.append(folder.parents[1].resolve() / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(f"{path} is a link to {real}, outside the model folder, which is unsafe; put the file itself there.")
    if not real.exists():
        raise UserError(f"{path} is a link to {real}, where nothing is; get the complete checkpoint.")
    if not stat.S_ISREG(real.stat().st_mode):
        raise UserError(f"{path} is no regular file; get the checkpoint again.")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises `UserError` if it is too large, is no JSON object, or gives a name twice."""
    size = path.stat().st_size
    if size > _MAX_JSON:
        raise UserError(f"{path} has {size} bytes, too many for a JSON file of a checkpoint; get the checkpoint again.")
    return _parse(path.read_bytes(), str(path))


def _lies(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _weight_map(folder: Path) -> dict[str, str]:
    if not _lies(folder / INDEX):
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}, and only safetensors are read; convert the weights first.")
    weights = read_object(file_in(folder, INDEX)).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{folder / INDEX} has no weight_map; get the checkpoint again.")
    for name in weights.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise UserError(
                f"{folder / INDEX} names the file {name!r:.80}; a plain name that ends in .safetensors is allowed and nothing that leads "
                "out of the folder, so get the checkpoint from its source."
            )
    names = set(weights.values())
    if len({name.casefold() for name in names}) < len(names):
        raise UserError(f"{folder / INDEX} names files that differ only in capital letters, one file on some systems; rename them.")
    return weights


def _check_index(folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Stored]) -> None:
    for key, shard in weight_map.items():
        if key not in tensors or tensors[key].shard != shard:
            raise UserError(f"{folder / INDEX} says that {shard} holds {key!r:.120}, and it does not; get the checkpoint again.")
    for key, stored in tensors.items():
        if key not in weight_map:
            raise UserError(f"{stored.shard} holds {key!r:.120}, which {folder / INDEX} does not list; get the checkpoint again.")
    metadata = read_object(folder / INDEX).get("metadata", {})
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(t.stop - t.start for t in tensors.values())
    if size is None:
        return
    plain = isinstance(size, int | float) and not isinstance(size, bool)
    if not plain or not total / _SIZE_FACTOR <= size <= total * _SIZE_FACTOR:
        raise UserError(f"{folder / INDEX} gives a total_size of {size!r:.40}, but its tensors have {total} bytes; get it again.")


def _by_key(folder: Path, shards: Iterable[Shard]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for shard in shards:
        for stored in shard.tensors:
            other = tensors.setdefault(stored.key, stored)
            if other is not stored:
                raise UserError(f"{stored.key!r:.120} is in {other.shard} and in {shard.name} of {folder}; get the checkpoint again.")
    return tensors


def _read_shard(folder: Path, name: str) -> Shard:
    path = file_in(folder, name)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise UserError(f"{path} is not safetensors: {_what(start, size, length)}; get the file again, or convert it to safetensors.")
        header = _parse(file.read(length), f"The header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"The metadata of {path} must map names to texts; get the checkpoint again.")
    begin = 8 + length
    tensors = [_entry(path, key, entry, begin) for key, entry in header.items()]
    tensors.sort(key=lambda t: (t.start, t.stop))
    _check_filled(path, tensors, begin, size)
    return Shard(name, path, size, tuple(tensors))


def _what(start: bytes, size: int, length: int) -> str:
    """Say what the first bytes of a file look like."""
    if size == 0:
        return "it is empty"
    if start.startswith(b"PK"):
        return "it is a zip archive, as PyTorch's own files are, and may hold pickle"
    if start.startswith(b"\x80"):
        return "it looks like a pickle, which could run code"
    if start.startswith(b"version "):
        return "it is a Git LFS pointer and not the file itself"
    return f"it has {size} bytes and a header of {length}"


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0][:200]
        raise UserError(f"{where} is not valid JSON: {why}; get the checkpoint again.") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{where} must be a JSON object, found {type(parsed).__name__}; get the checkpoint again.")
    return parsed


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r:.120} stands there twice")
    return found


def _entry(path: Path, key: str, entry: object, begin: int) -> Stored:
    def refused(what: str) -> UserError:
        return UserError(f"Tensor {key!r:.120} of {path} {what}; get the checkpoint again.")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused("is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refused(f"has the unknown dtype {dtype!r:.40}")
    if not _sizes(shape) or len(shape) > _MAX_AXES or prod(shape) > _MAX_SIDE:
        raise refused(f"has the shape {shape!r:.80}, which is no list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refused(f"has the offsets {offsets!r:.80}, which are no begin and end")
    bits, found = prod(shape) * BITS[dtype], (offsets[1] - offsets[0]) * 8
    if bits != found:
        raise refused(f"has {found // 8} bytes, but shape {shape!r:.80} in {dtype} needs {bits / 8:g}")
    return Stored(key, path.name, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= _MAX_SIDE for v in value)


def _check_filled(path: Path, tensors: list[Stored], begin: int, size: int) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    at = begin
    for stored in tensors:
        if stored.start != at:
            what = "overlaps the tensor before it" if stored.start < at else "leaves a hole before it"
            raise UserError(f"Tensor {stored.key!r:.120} of {path} {what}; get the checkpoint again.")
        at = stored.stop
    if at != size:
        what = "is cut short" if size < at else "has bytes after its last tensor"
        raise UserError(f"{path} {what}: {size} bytes, and its tensors end at {at}; get the file again.")
