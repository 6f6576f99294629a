"""Control vectors: directions in files of other projects. GGUF as llama.cpp and repeng use it, and NumPy arrays.

A GGUF control vector holds one float32 tensor `direction.N` a layer. llama.cpp adds it to the residual stream after block N, blocks
counted from 0, and never to block 0; repeng numbers the same way. So `direction.N` is our layer N, and layer 0 has no place in such a file.

The reader is our own because files from outside are hostile until checked: every length is held against the file's before it is
believed, and metadata is skipped without an object for each value. The writer is the `gguf` package's.
"""

import re
import struct
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from resect import artifacts
from resect.errors import UserError, missing_extra

ARCHITECTURE = "controlvector"
_MOST_BYTES = 1 << 26  # a vector for each of 126 layers of width 16384 takes 8 MB
_VERSIONS = (2, 3)
_FLOAT32 = 0  # ggml's number for the type
_STRING, _ARRAY = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value by its type number."""
_ALIGNMENT = 32


# NumPy reads the header of a .npy file as Python literals, and lets every error of that through.
_NPY_ERRORS = (ValueError, OSError, EOFError, ArithmeticError, SyntaxError, TypeError, KeyError, TokenError, RecursionError, MemoryError)


class _Broken(ValueError):
    """What is wrong with a file, in a few words."""


def load_gguf(path: Path, *, layers: int | None = None) -> Float[Tensor, "layer direction d_model"]:
    """Return the directions of a GGUF control vector, one a layer; layers that it does not name, 0 among them, hold zeros.

    `layers` is the number of blocks of the model; unset, the highest layer named is the last.

    Raises:
        UserError: no GGUF file, a model in place of a control vector, tensors that are not float32 vectors of one width, NaN or infinity,
            counts or lengths that do not fit the file, a layer that the model does not have.
    """
    try:
        found = _parse(_read(path))
    except (_Broken, UnicodeDecodeError, struct.error) as error:
        raise UserError(f"{path} is no control vector that can be read: {error}; export it again.") from error
    count = layers or max(found) + 1
    if max(found) >= count:
        raise UserError(
            f"{path} holds a direction for layer {max(found)}, but the model was said to have {count} layers, 0 to {count - 1}."
        )
    width = len(found[max(found)])
    if count * width * 4 > _MOST_BYTES:
        raise UserError(f"{path} would need {count} layers of width {width}, more than any model has; export it again.")
    vectors = torch.zeros(count, 1, width)
    for layer, vector in found.items():
        vectors[layer, 0] = torch.from_numpy(vector)
    return vectors


def save_gguf(path: Path, vectors: Float[Tensor, "layer d_model"], *, hint: str) -> tuple[int, ...]:
    """Write a GGUF control vector and return the layers in it: all that are not zero, but 0, which the format cannot hold.

    `hint` says which model it is for; nothing depends on it.

    Raises:
        UserError: NaN or infinity, nothing to write, the `gguf` package is missing, a folder that cannot be written to.
    """
    if not bool(torch.isfinite(vectors).all()):
        raise UserError("The directions hold NaN or infinity, and nothing can be concluded from such numbers; make them again.")
    wanted = {layer: vector for layer, vector in enumerate(vectors) if layer > 0 and bool(vector.any())}
    if not wanted:
        raise UserError("There is no direction above layer 0, and a control vector cannot hold layer 0: nothing would be written.")
    artifacts.write_bytes(path, _gguf_bytes({n: v.float().cpu().numpy() for n, v in wanted.items()}, hint=hint))
    return tuple(wanted)


def load_npy(path: Path) -> Float[Tensor, "layer direction d_model"]:
    """Return the directions of a NumPy file: floats of shape [layer, d_model] or [layer, direction, d_model]. Never unpickles.

    Raises:
        UserError: no .npy file, objects, another dtype or number of axes, a shape that the file is too short for, NaN or infinity.
    """
    try:
        # A memory map checks the shape against the file's length before anything is read.
        array = np.lib.format.open_memmap(path, mode="r")
    except _NPY_ERRORS as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a NumPy array ({why}); save it again with numpy.save.") from error
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating) or not array.size:
        raise UserError(
            f"{path} holds {array.dtype} of shape {list(array.shape)}; needed are floats of shape [layer, d_model] or "
            "[layer, direction, d_model]."
        )
    vectors = torch.from_numpy(np.array(array, dtype=np.float32))
    if not bool(torch.isfinite(vectors).all()):
        raise UserError(f"{path} holds NaN or infinity, and nothing can be concluded from such numbers; make it again.")
    return vectors[:, None] if vectors.ndim == 2 else vectors


def _gguf_bytes(vectors: Mapping[int, NDArray[np.float32]], *, hint: str) -> bytes:
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "gguf") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.gguf"
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _read(path: Path) -> BytesIO:
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is larger than {_MOST_BYTES >> 20} MB: this is a model, and no control vector.")
    return BytesIO(path.read_bytes())


def _parse(file: BytesIO) -> dict[int, NDArray[np.float32]]:
    """Return the vectors by layer."""
    if _take(file, 4) != b"GGUF":
        raise _Broken("it does not begin with the letters GGUF")
    version = _number(file, "I")
    if version not in _VERSIONS:
        kind = "it is big-endian" if version & 0xFFFF == 0 and version else f"it has version {version}"
        raise _Broken(f"{kind}, and little-endian version 2 or 3 is read")
    tensors, entries = _number(file, "Q"), _number(file, "Q")
    metadata: dict[str, object] = {}
    for _ in range(entries):
        name = _string(file)
        if name in metadata:
            raise _Broken(f"it holds the entry {name!r} twice")
        metadata[name] = _value(file)
    if metadata.get("general.architecture") != ARCHITECTURE:
        raise _Broken(f"its architecture is {metadata.get('general.architecture')!r}, not {ARCHITECTURE!r}")
    places: dict[int, tuple[int, int]] = {}
    for _ in range(tensors):
        layer, length, offset = _tensor(file)
        if layer in places:
            raise _Broken(f"it holds direction.{layer} twice")
        places[layer] = (length, offset)
    return _vectors(file, places, alignment=metadata.get("general.alignment", _ALIGNMENT))


def _vectors(file: BytesIO, places: Mapping[int, tuple[int, int]], *, alignment: object) -> dict[int, NDArray[np.float32]]:
    if not places:
        raise _Broken("it holds no directions")
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Broken(f"its alignment is {alignment!r}, and a power of two is needed")
    widths = sorted({length for length, _ in places.values()})
    if len(widths) > 1:
        raise _Broken(f"its directions have different widths: {widths[0]} and {widths[-1]}")
    start = -(-file.tell() // alignment) * alignment
    data = file.getbuffer()
    found = {}
    for layer, (length, offset) in sorted(places.items()):
        end = start + offset + 4 * length
        if end > len(data):
            raise _Broken(f"direction.{layer} would end at byte {end} of {len(data)}")
        vector = np.frombuffer(data[start + offset : end], dtype="<f4").copy()
        if not np.isfinite(vector).all():
            raise _Broken(f"direction.{layer} holds NaN or infinity")
        found[layer] = vector
    return found


def _tensor(file: BytesIO) -> tuple[int, int, int]:
    """Return layer, length and offset of the next tensor; what no control vector has is refused by name."""
    name = _string(file)
    number = re.fullmatch(r"direction\.(0|[1-9]\d{0,3})", name)
    if number is None:
        raise _Broken(f"it holds a tensor {name[:60]!r}, and only direction.N is read")
    if number[1] == "0":
        raise _Broken("it holds direction.0, and control vectors begin at layer 1")
    axes = _number(file, "I")
    if axes != 1:
        raise _Broken(f"{name} has {axes} axes, and one is needed")
    length, kind, offset = _number(file, "Q"), _number(file, "I"), _number(file, "Q")
    if kind != _FLOAT32:
        raise _Broken(f"{name} has the type number {kind}, and only float32 (0) is read")
    if length < 1:
        raise _Broken(f"{name} is empty")
    return int(number[1]), length, offset


def _value(file: BytesIO) -> object:
    """Return the next metadata value: strings and whole numbers as they are, others skipped as None."""
    kind = _number(file, "I")
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        return _skip_array(file)
    if kind not in _WIDTHS:
        raise _Broken(f"its metadata holds a value of the unknown type {kind}")
    data = _take(file, _WIDTHS[kind])
    return int.from_bytes(data, "little") if kind in (0, 2, 4, 10) else None


def _skip_array(file: BytesIO) -> None:
    kind, count = _number(file, "I"), _number(file, "Q")
    if kind == _STRING:
        for _ in range(count):
            _take(file, _number(file, "Q"))
        return
    if kind not in _WIDTHS:
        raise _Broken(f"its metadata holds an array of the type {kind}, which is not read")
    _take(file, count * _WIDTHS[kind])


def _string(file: BytesIO) -> str:
    return _take(file, _number(file, "Q")).decode("utf-8")


def _number(file: BytesIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", _take(file, struct.calcsize(f"<{kind}")))[0]


def _take(file: BytesIO, count: int) -> bytes:
    """Return the next bytes, never fewer."""
    left = file.getbuffer().nbytes - file.tell()
    if count > left:
        raise _Broken(f"it needs {count} bytes where {left} are left")
    return file.read(count)
