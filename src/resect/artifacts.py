"""Files of results: tensors with a JSON header, JSON, text. Written atomically, the same bytes for the same values, never pickle.

A tensor file is a safetensors file whose metadata has one key, `header`: a JSON object with sorted keys. Its `format` is `name/version`.
Files made elsewhere may give `format` as a plain metadata key instead.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resect.errors import UserError

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_HEADER = "header"
DIRECTIONS = "resect.directions/1"
"""The format of a directions file, which may have been made elsewhere."""
_MAX_JSON_BYTES = 1 << 28
# torch maps the file once more, and this is how it says that another process has removed it meanwhile.
_UNREADABLE = (SafetensorError, OSError, RuntimeError)
_PICKLE = "can run code when it is read, and is never read; open it where you trust it, and write its tensors with safetensors"
_OTHERS = {
    b"GGUF": "it is a GGUF file; a control vector is converted with resect convert",
    b"\x93NUMPY": "it is a NumPy array; it is converted with resect convert",
    b"PK": f"it is a zip file, as torch.save and numpy.savez write it, which {_PICKLE}",
    b"\x80": f"it is a pickle, which {_PICKLE}",
}
"""Other formats by their first bytes, with what to do."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header; the header needs a `format` such as `resect.directions/1`.

    Raises:
        UserError: NaN or infinity in a tensor (by name), a disk that is full, a folder that cannot be written to.
    """
    if not isinstance(header.get("format"), str):
        raise ValueError("the header of a tensor file needs a 'format'")
    _check_finite(path, tensors)
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # One key only: the order of several in the file is not fixed.
    data = save(ready, metadata={_HEADER: dump_json(header, indent=None)})
    _write(path, lambda file: file.write(data))


def load_tensors(path: Path, *, format: str, axes: Mapping[str, int] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and its header; `axes` names the tensors that must be there and how many axes each has.

    Raises:
        UserError: missing or broken file, another format or version, a missing tensor, another number of axes, a dtype that is no
            plain number, NaN or infinity (by name).
    """
    _check_exists(path, kind="file")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata() or {}, format)
            _check_layout(path, file, axes or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as safetensors: {_told(path, error)}.") from error
    _check_finite(path, tensors)
    return tensors, header


def read_header(path: Path, *, format: str) -> dict[str, Any]:
    """Return the header of a tensor file without reading its tensors; raises `UserError` as `load_tensors` does."""
    _check_exists(path, kind="file")
    try:
        with safe_open(path, framework="pt") as file:
            return _header(path, file.metadata() or {}, format)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as safetensors: {_told(path, error)}.") from error


def write_json(path: Path, data: object) -> None:
    """Write JSON with sorted keys, two spaces of indent and a final newline.

    Raises:
        ValueError: NaN or infinity in the data, with the place where it stands: a number that cannot be told is written as null.
        UserError: a disk that is full, a folder that cannot be written to.
    """
    write_text(path, dump_json(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: missing file, malformed JSON (with the line), NaN or infinity.
    """
    _check_exists(path, kind="file")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MB, too large for a JSON file of results; make it again.")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); make the file again.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}; make the file again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text.

    Raises:
        UserError: a disk that is full, a folder that cannot be written to.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes.

    Raises:
        UserError: a disk that is full, a folder that cannot be written to.
    """
    _write(path, lambda file: file.write(data))


def dump_json(data: object, *, indent: int | None = None) -> str:
    """Return JSON text with sorted keys.

    Raises:
        ValueError: NaN or infinity in the data, with the place where it stands.
    """
    _check_json(data, "")
    return json.dumps(data, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary name in the same folder, flush to disk and rename: readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; free some space or choose another folder.") from error
    finally:
        _remove(temporary)


def sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    # A path below a file is no temporary file that was made.
    if temporary.parent.is_dir():
        temporary.unlink(missing_ok=True)


def _check_exists(path: Path, *, kind: str) -> None:
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "nothing is there"
        raise UserError(f"There is no {kind} {path} ({found}); check the path, or run the stage that makes it.")


def _told(path: Path, error: Exception) -> str:
    """Return why a file is no safetensors file, and what to do: other formats are known by their first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        start = b""
    for first, advice in _OTHERS.items():
        if start.startswith(first):
            return advice
    return f"{str(error).splitlines()[0]}; make the file again"


def _header(path: Path, metadata: Mapping[str, str], expected: str) -> dict[str, Any]:
    header: dict[str, Any] = {key: value for key, value in metadata.items() if key != _HEADER}
    if _HEADER in metadata:
        try:
            parsed = json.loads(metadata[_HEADER], parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"The header of {path} is not valid JSON ({error}); make the file again.") from error
        if not isinstance(parsed, dict):
            raise UserError(f"The header of {path} must be a JSON object, found {type(parsed).__name__}; make the file again.")
        header |= parsed
    _check_format(path, header.get("format"), expected)
    return header


def _check_format(path: Path, got: object, expected: str) -> None:
    if got == expected:
        return
    name, _, version = expected.partition("/")
    if isinstance(got, str) and got.partition("/")[0] == name:
        raise UserError(
            f"{path} has version {got.partition('/')[2]!r} of format {name}, and version {version!r} is read; make the file again."
        )
    raise UserError(f"{path} has the format {got!r}, but {expected!r} is needed here; give the file of the right stage.")


def _check_layout(path: Path, file: Any, axes: Mapping[str, int]) -> None:
    """Check names, dtypes and shapes from the file's index, before any tensor is read."""
    names = list(file.keys())
    for name, count in axes.items():
        if name not in names:
            raise UserError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(names)) or 'none'}; make the file again.")
        shape = file.get_slice(name).get_shape()
        if len(shape) != count or 0 in shape:
            raise UserError(
                f"Tensor {name!r} of {path} must have {count} axes, none of them empty, found shape {shape}; make the file again."
            )
    for name in names:
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _DTYPES:
            raise UserError(f"Tensor {name!r} of {path} has dtype {dtype}; allowed are {', '.join(_DTYPES)}.")


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise UserError(
                f"Tensor {name!r} of {path} holds NaN or infinity in {bad} of {tensor.numel()} values; find out where they come from, "
                "for nothing can be concluded from such numbers."
            )


def _check_json(data: object, where: str) -> None:
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{where or 'the value'} is {data}, which JSON cannot hold; write null where a number cannot be told")
    if isinstance(data, Mapping):
        for key, value in data.items():
            _check_json(value, f"{where}.{key}" if where else str(key))
    elif isinstance(data, list | tuple):
        for k, value in enumerate(data):
            _check_json(value, f"{where}[{k}]")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON can hold")
