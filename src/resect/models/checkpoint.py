"""A safetensors checkpoint on disk whose tensors can be read, one by one or in part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resect.errors import UserError
from resect.models.files import Files, fill, open_files

PLAIN: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""The dtypes that can be edited, by their names on disk."""

_READ: Mapping[str, torch.dtype] = {**PLAIN, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}


@dataclass(frozen=True, eq=False)
class Checkpoint(Files):
    """The files of a checkpoint, with what reads them."""

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        """Return a tensor in its own dtype, or entries of its first axis; only these bytes are read.

        Raises:
            UserError: a dtype that torch cannot compute with, or a file that was cut short since it was checked.
        """
        stored = self.tensors[key]
        if stored.dtype not in _READ:
            raise UserError(f"Tensor {key} of {self.folder} has dtype {stored.dtype}, which cannot be computed with; it is quantised.")
        first, last, _ = rows.indices(stored.shape[0] if stored.shape else 1)
        data = bytearray((last - first) * stored.row_bytes)
        with self.path(stored.shard).open("rb", buffering=0) as file:
            file.seek(stored.start + first * stored.row_bytes)
            fill(data, file, where=key)
        shape = (last - first, *stored.shape[1:]) if stored.shape else ()
        if not data:
            return torch.empty(shape, dtype=_READ[stored.dtype])
        return torch.frombuffer(data, dtype=_READ[stored.dtype]).reshape(shape)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder, every header checked; no tensor is read, and `UserError` is raised as by `open_files`."""
    return Checkpoint(**vars(open_files(folder)))
