"""A checkpoint and its network without data: what the checkpoint would be loaded into, to be filled part by part from disk."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from resect.errors import UserError
from resect.models import source as sources
from resect.models.checkpoint import PLAIN, Checkpoint, open_checkpoint
from resect.models.files import Stored
from resect.models.keys import Origin, origins
from resect.models.load import digest, find_blocks
from resect.models.quantised import method

SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.spm", "*.bpe", "merges.txt", "vocab.txt", "LICENSE*", "NOTICE*")
"""What of a model folder goes with its weights; README.md is written anew."""

_READ = 1 << 24  # bytes at a time
_TABLE = 512  # rows that are read of an embedding table, for the probe tokens


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A checkpoint with the network that transformers would load it into, its parameters without data.

    `origins` says which stored tensors each parameter is made from, `shapes` what they make, `shared` which parameters are one tensor with
    another, `places` which name stands for all names of one (the stored one), `dtype` what it would be loaded in; `quantised` names the
    method, if there is one.
    """

    name: str
    checkpoint: Checkpoint
    network: PreTrainedModel
    block_names: tuple[str, ...]
    origins: Mapping[str, Origin]
    shapes: Mapping[str, tuple[int, ...]]
    shared: frozenset[str]
    places: Mapping[str, str]
    dtype: torch.dtype
    quantised: str | None

    @functools.cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The text decoder's blocks, in order."""
        return tuple(self.network.get_submodule(name) for name in self.block_names)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.get_text_config(decoder=True).hidden_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the loaded model (`load.fingerprint`); every tensor is read for it, one at a time."""

        def read(name: str) -> Tensor:
            value = self._made(name, self.checkpoint.read)
            return value.to(self.dtype) if value.is_floating_point() else value

        return digest(self.network.config.to_dict(), {name: self.places.get(name, name) for name in self.shapes}, read)

    def origin(self, name: str) -> Origin | None:
        """Return where a parameter or buffer comes from, under whichever of its names it is stored; None if nothing on disk makes it."""
        return self.origins.get(self.places.get(name, name))

    def stored(self, name: str) -> tuple[Stored, ...]:
        """Return the stored tensors behind a parameter, checked: together they make its shape.

        Raises:
            UserError: if nothing on disk makes it, or something of another shape.
        """
        origin = self.origin(name)
        if origin is None:
            raise UserError(
                f"Parameter {name} of {type(self.network).__name__} comes from no tensor of {self.name}; get the complete checkpoint, in "
                "the layout that transformers saves."
            )
        tensors = self.checkpoint.tensors
        made = self._made(name, lambda key: torch.empty(tensors[key].shape, device="meta"))
        wanted = self.shapes[name]
        if tuple(made.shape) != wanted:
            raise UserError(
                f"Parameter {name} must have shape {wanted}, but {origin.keys[0]} of {self.name} makes {tuple(made.shape)}; the weights do "
                "not fit config.json, get the checkpoint again."
            )
        return tuple(tensors[key] for key in origin.keys)

    def value(self, name: str) -> Tensor:
        """Return a parameter in float32, read from disk; raises what `stored` raises, and for quantised tensors."""
        origin, (first, *_) = self.origins.get(name), self.stored(name)
        if origin is not None and origin.rule is None and first.dtype in PLAIN and first.shape:
            # Widened as it is read: the whole of it in two dtypes would be half as much again.
            value = torch.empty(first.shape)
            step = max(1, _READ // max(1, first.row_bytes))
            for start in range(0, first.shape[0], step):
                value[start : start + step] = self.checkpoint.read(first.key, slice(start, start + step))
            return value
        value = self._made(name, self.checkpoint.read)
        return value.float() if value.is_floating_point() else value

    def plain(self, name: str) -> bool:
        """Return whether a parameter is stored as numbers that can be computed with."""
        origin = self.origin(name)
        return origin is not None and all(self.checkpoint.tensors[key].dtype in PLAIN for key in origin.keys)

    def _made(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        try:
            own = self.places.get(name, name)
            return self.origins[own].make(own, self.network, read)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"Parameter {name} cannot be made from the tensors of {self.name}: {sources.first_line(error)}; get the checkpoint again."
            ) from error


def open_skeleton(source: str | Path, *, revision: str | None = None) -> Skeleton:
    """Return the skeleton of a model folder or a Hub repository; code that comes with a model never runs.

    Raises:
        UserError: a checkpoint that is broken or hostile (`open_checkpoint`), or an architecture that transformers does not know.
    """
    folder = _folder(source, revision)
    checkpoint = open_checkpoint(folder)
    place = sources.Source(str(folder), None, folder)
    config = sources.read_config(place, trust_remote_code=False)
    quantised = method(checkpoint)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else _stored_dtype(checkpoint)
    # Without it the plain network is built, whatever is stored for it.
    vars(config).pop("quantization_config", None)
    loader = AutoModelForImageTextToText if sources.is_vision_language(config) else AutoModelForCausalLM
    try:
        with init_empty_weights(include_buffers=False):
            network: Any = loader.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"The network of {source} cannot be built from its config.json: {sources.first_line(error)}") from error
    network.tie_weights()
    network.eval().requires_grad_(requires_grad=False)
    names = origins(network, checkpoint.tensors)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return Skeleton(
        str(source), checkpoint, network, find_blocks(network), names, shapes, _shared(network), _places(network, names), dtype, quantised
    )


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return next((PLAIN[tensor.dtype] for tensor in checkpoint.tensors.values() if tensor.dtype in PLAIN), torch.float32)


def _shared(network: nn.Module) -> frozenset[str]:
    named = list(network.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in named)
    return frozenset(name for name, parameter in named if count[id(parameter)] > 1)


def _places(network: nn.Module, stored: Container[str]) -> dict[str, str]:
    """Return, for every parameter, the one of its names that is stored; told at once, since a tie is lost while a block is filled."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name: next((n for n in group if n in stored), group[0]) for group in names.values() for name in group}


def _folder(source: str | Path, revision: str | None) -> Path:
    """Return the local folder, or the snapshot of a Hub repository in the cache, fetched if need be."""
    path = Path(source).expanduser()
    if path.exists() or not sources.is_hub_id(source):
        return path
    patterns = ["*.safetensors", *SIDE_FILES]
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"The checkpoint {source} cannot be read or found on the Hub: {sources.first_line(error)}") from error


@contextmanager
def filled(skeleton: Skeleton, module: str) -> Iterator[None]:
    """Give a module its weights, in float32, for the `with` block.

    Of a quantised checkpoint, what cannot be computed with is random: it shows the structure, and is never written anywhere.
    """
    names = [f"{module}.{name}" for name in skeleton.network.get_submodule(module).state_dict()]
    try:
        for name in names:
            _set(skeleton, name, _value(skeleton, name))
        yield
    finally:
        for name in names:
            _clear(skeleton, name)


@contextmanager
def filled_outside(skeleton: Skeleton) -> Iterator[None]:
    """Give the network what a pass over text needs outside its blocks, for the `with` block; of embedding tables the first rows only.

    The decoder is filled at once; modules outside it, most of which belong to images, as they run.
    """
    network, decoder = skeleton.network, skeleton.network.get_decoder()
    inside = tuple(f"{name}." for name in skeleton.block_names)
    tables = {f"{n}.weight": m for n, m in network.named_modules() if isinstance(m, nn.Embedding)}
    done: set[str] = set()

    def fill(names: Iterable[str]) -> None:
        for name in names:
            if name in done or name.startswith(inside) or name not in skeleton.shapes:
                continue
            done.add(name)
            if name in tables:
                # A padding row beyond the rows that are there is refused by torch.
                tables[name].padding_idx = None
                tables[name].weight = nn.Parameter(_rows(skeleton, name), requires_grad=False)
            else:
                _set(skeleton, name, _value(skeleton, name))

    with ExitStack() as stack:
        stack.callback(lambda: [_emptied(skeleton, name, tables.get(name)) for name in done])
        fill(f"{name}.{own}".lstrip(".") for name, module in network.named_modules() if module is decoder for own in module.state_dict())
        # transformers asks a network for the device of its first parameter, and moves hidden states there.
        holders = {n: m for n, m in network.named_modules() if any(part is decoder for part in m.modules())}
        fill(f"{name}.{next(iter(dict(module.named_parameters())))}".lstrip(".") for name, module in holders.items())
        for name, module in network.named_modules():
            own = [f"{name}.{n}".lstrip(".") for n in (*module._parameters, *module._buffers)]
            stack.callback(module.register_forward_pre_hook(lambda _module, _args, own=own: fill(own)).remove)
        yield


def _emptied(skeleton: Skeleton, name: str, table: nn.Embedding | None) -> None:
    if table is None:
        _clear(skeleton, name)
    else:
        table.weight = nn.Parameter(torch.empty(skeleton.shapes[name], device="meta"), requires_grad=False)


def _rows(skeleton: Skeleton, name: str) -> Tensor:
    """Return the first rows of a table."""
    origin = skeleton.origin(name)
    if origin is None or origin.rule is not None or not skeleton.plain(name):
        return _value(skeleton, name)[:_TABLE]
    return skeleton.checkpoint.read(origin.keys[0], slice(0, _TABLE)).float()


def _value(skeleton: Skeleton, name: str) -> Tensor:
    if skeleton.quantised is None or skeleton.plain(name):
        return skeleton.value(name)
    return torch.randn(skeleton.shapes[name], generator=torch.Generator().manual_seed(0)) * 0.02


def _set(skeleton: Skeleton, name: str, value: Tensor) -> None:
    # The norm takes no memory, and tells of all but numbers whose squares overflow.
    if value.is_floating_point() and not bool(torch.isfinite(torch.linalg.vector_norm(value)) or torch.isfinite(value).all()):
        raise UserError(f"Parameter {name} of {skeleton.name} holds NaN or infinity; get the checkpoint again.")
    _put(skeleton.network, name, value)


def _put(network: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, without a copy."""
    module, _, leaf = name.rpartition(".")
    owner = network.get_submodule(module)
    is_parameter = any(n == leaf for n, _ in owner.named_parameters(recurse=False))
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _clear(skeleton: Skeleton, name: str) -> None:
    _put(skeleton.network, name, torch.empty(skeleton.shapes[name], device="meta"))
