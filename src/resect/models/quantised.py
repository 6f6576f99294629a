"""Checkpoints whose weights are quantised: by which method, and what to do about it."""

from collections.abc import Mapping
from typing import Any

from resect.errors import UserError
from resect.models.checkpoint import PLAIN, Checkpoint

METHODS: Mapping[str, str] = {
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (fbgemm)",
    "finegrained_fp8": "FP8 (fine-grained)",
    "mxfp4": "MXFP4",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "NVFP4 (ModelOpt)",
    "torchao": "torchao",
    "quanto": "quanto",
    "hqq": "HQQ",
}
"""Names of methods as config.json gives them, and as people do."""

_PLACES = ("quantization_config", "compression_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_KEPT = frozenset({"BOOL", "I64", "I32", "F64", *PLAIN})


def method(checkpoint: Checkpoint) -> str | None:
    """Return the method by which the checkpoint is quantised, None if it is not: from config.json, from a file beside it, or by dtype."""
    configs = [checkpoint.config, *(v for v in checkpoint.config.values() if isinstance(v, dict))]
    for config in configs:
        for place in _PLACES:
            settings = config.get(place)
            if isinstance(settings, dict):
                name = str(settings.get("quant_method", "unknown"))
                return METHODS.get(name, name[:40])
    beside = [name for name in _FILES if (checkpoint.folder / name).exists()]
    if beside:
        return f"as {beside[0]} says"
    odd = sorted({stored.dtype for stored in checkpoint.tensors.values()} - _KEPT)
    return f"stored as {', '.join(odd)}" if odd else None


def refused(name: str, how: str, *, parameter: str, why: str) -> UserError:
    """Return the error for an edit of a parameter that is quantised on disk."""
    return UserError(
        f"{name} is quantised ({how}) and {parameter}, which the edit would change, {why}; dequantise it to a 16-bit checkpoint first, or "
        "edit the 16-bit original and quantise that again."
    )


def check_plain(name: str, how: str, *, parameter: str, stored: tuple[Any, ...], keys: Mapping[str, Any]) -> None:
    """Check that a parameter of a quantised checkpoint is stored in plain numbers that no scale goes with.

    Raises:
        UserError: naming the method, the parameter and what stands in the way.
    """
    if not stored:
        raise refused(name, how, parameter=parameter, why="is not stored as it is")
    for tensor in stored:
        if tensor.dtype not in PLAIN:
            raise refused(name, how, parameter=parameter, why=f"is stored as {tensor.dtype}")
        scales = [key for key in keys if key != tensor.key and key.startswith(f"{tensor.key}_")]
        if scales:
            raise refused(name, how, parameter=parameter, why=f"goes with {scales[0]}")
