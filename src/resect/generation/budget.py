"""How large a batch may be: as the memory model predicts, for the memory that is free."""

import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from resect.errors import UserError
from resect.models.batches import batches
from resect.models.chat import Rendered
from resect.models.load import ChatModel
from resect.models.memory import generation_bytes, without_weights

Shape = tuple[int, int, bool]

_USABLE = 0.8  # of what is free: allocators need room to move


def fitting(model: ChatModel, rendered: Sequence[Rendered], *, batch_tokens: int, new: int) -> int:
    """Return the largest budget, `batch_tokens` halved as often as needed, whose first batch is predicted to fit into free memory.

    The first batch holds the longest prompts. Where free memory is not told, or the network cannot be run without data, the budget stays;
    a batch that does not fit is halved when it fails.
    """
    free = free_bytes(model.device)
    if not rendered or free is None:
        return batch_tokens
    budget, longest = batch_tokens, max(len(r.ids) for r in rendered)
    while budget // 2 >= longest and not _fits(model, _shape(rendered, budget), new, _USABLE * free):
        budget //= 2
    return budget


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device, None if it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and os.name == "posix" and meminfo.is_file():
        rows = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return int(rows["MemAvailable"].split()[0]) << 10 if "MemAvailable" in rows else None
    return None


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory ran out, on an accelerator or on the processor."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def _shape(rendered: Sequence[Rendered], budget: int) -> Shape:
    first = next(iter(batches(rendered, batch_tokens=budget)))
    return len(first.rows), int(first.input_ids.shape[1]), bool((first.attention_mask == 0).any())


def _fits(model: ChatModel, shape: Shape, new: int, most: float) -> bool:
    """Return whether decoding a batch is predicted to fit, true if nothing can be predicted.

    A prediction takes a tenth of a second or more, so a coarser, larger shape is asked about first: where memory is plenty a study then
    needs two or three of them.
    """
    rows, width, _ = shape
    return predicted(model, (_coarse(rows), _coarse(width), True), _coarse(new)) <= most or predicted(model, shape, new) <= most


def _coarse(n: int) -> int:
    return 4 ** math.ceil(math.log(n, 4))


def predicted(model: ChatModel, shape: Shape, new: int) -> int:
    """Return the bytes that decoding a batch (rows, width, whether padded) holds at its peak, 0 if that cannot be predicted."""
    config = model.network.config
    return _bytes(type(config), config.to_json_string(use_diff=False), model.network.dtype, shape, new, model.device.type)


@functools.lru_cache(maxsize=256)
def _bytes(kind: type[PreTrainedConfig], config: str, dtype: torch.dtype, shape: Shape, new: int, device: str) -> int:
    try:
        return generation_bytes(_empty(kind, config, dtype), *shape, new=new, on_cpu=device == "cpu")
    except (UserError, RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):
        return 0


@functools.lru_cache(maxsize=2)
def _empty(kind: type[PreTrainedConfig], config: str, dtype: torch.dtype) -> PreTrainedModel:
    return without_weights(kind.from_dict(json.loads(config)), dtype=dtype)
