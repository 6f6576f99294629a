"""All that decides what a model computes from given tokens: what a kept result must have been made with to be believed."""

import hashlib
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resect.digests import digest
from resect.models.load import ChatModel

_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scipy", "peft")
# Kernels that transformers takes up by itself where they are installed.
_KERNELS = ("kernels", "flash-attn", "flash-linear-attention", "causal-conv1d", "mamba-ssm")
# What cannot change a result: the import contract forbids the rest of the code to import it.
_ABOVE = ("cli", "commands", "report")


def identity(model: ChatModel) -> str:
    """Return a hash over weights, configuration, tokenizer, chat template, code, versions, device and numeric switches."""
    network = model.network
    parts: dict[str, Any] = {
        "weights": model.fingerprint,
        "now": [checksum(t) for _, t in sorted(network.state_dict().items())],
        "buffers": {name: checksum(t) for name, t in sorted(network.named_buffers())},
        "implementations": [str(getattr(network.config, f"_{kind}_implementation", None)) for kind in ("attn", "experts")],
        "adapters": {name: repr(sorted(config.to_dict().items(), key=str)) for name, config in getattr(network, "peft_config", {}).items()},
        "ends": sorted(model.end_ids),
        "pad": model.pad_id,
        "tokenizer": _tokenizer(model),
        "network code": _network_code(model),
        "resect": own_code(),
        "versions": {name: _version(name) for name in (*_LIBRARIES, *_KERNELS)},
        "numerics": _numerics(model),
    }
    return digest(parts)


def asked_through(model: ChatModel) -> str:
    """Return a hash over what stands between text and network: tokenizer, chat template, and the tokens that end a turn."""
    return digest({"tokenizer": _tokenizer(model), "ends": sorted(model.end_ids)})


def has_hooks(model: ChatModel) -> bool:
    """Return whether a module has a hook, whose doings no hash can tell."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's bits, taken as integers: it changes with any one byte, and costs one reading of the memory.

    The fingerprint was made when the model was; this tells whether somebody has written into the weights since.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.dtype.itemsize, torch.uint8)
    return int(flat.view(integers).sum(dtype=torch.int64)) if flat.numel() else 0


@cache
def own_code() -> str:
    """Return a hash over resect's own source and data, as far as they can change a result."""
    return digest({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(own_files().items())})


def own_files() -> dict[str, Path]:
    """Return resect's source and data files by their names in the package, but for commands, report and the shipped weights."""
    root = Path(__file__).parents[1]
    found = {p.relative_to(root): p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    return {name.as_posix(): p for name, p in found.items() if name.parts[0] not in _ABOVE and name.parts[:2] != ("data", "organism")}


def _network_code(model: ChatModel) -> dict[str, str]:
    """Return the hash of every file that defines a module of the network: code that comes with a checkpoint has no version."""
    names = {type(m).__module__ for m in model.network.modules()}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sorted(names) if not name.startswith("torch.")}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "" for name, file in files.items()}


def _tokenizer(model: ChatModel) -> list[str]:
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    core = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return [core, repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map), repr(sorted(tokenizer.all_special_tokens))]


def _numerics(model: ChatModel) -> list[str]:
    """Return device and switches that change the last bits of a sum."""
    devices = {p.device for p in model.network.parameters()}
    return [
        *sorted({d.type for d in devices}),
        *sorted({torch.cuda.get_device_name(d) for d in devices if d.type == "cuda"}),
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
        torch.get_float32_matmul_precision(),
        f"deterministic {torch.are_deterministic_algorithms_enabled()}",
        str(torch.get_default_dtype()),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
