"""Models as values: network, tokenizer, text decoder blocks and fingerprint. What may be read from disk is settled in `source.py`."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from resect.errors import UserError
from resect.models import source as sources
from resect.models.chat import chat_template

log = logging.getLogger(__name__)

# Differ between a model in memory and the same model read back, so they say nothing about what the model computes.
_NOT_IDENTITY = frozenset({"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"})


@dataclass(frozen=True, eq=False)
class ChatModel:
    """A causal language model with a chat template, in evaluation mode and without gradients. Made by `load_model` or `wrap`.

    `fingerprint` is a SHA-256 over the configuration and every stored tensor at the time of making; `notes` tell what was adapted.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    block_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The text decoder's blocks, in order; `layer` counts these."""
        return tuple(self.network.get_submodule(name) for name in self.block_names)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.get_text_config(decoder=True).hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go in; raises `UserError` if the weights are offloaded."""
        if self.network.device.type == "meta":
            raise without_data(next(name for name, _ in self.network.named_parameters()))
        return self.network.device

    @property
    def context(self) -> int | None:
        """The most tokens that the network has positions for, None if its configuration names no limit."""
        config = self.network.config.get_text_config(decoder=True)
        limit, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
        if not isinstance(limit, int):
            return None
        # Stretched positions, given as a factor on the original limit; some networks have them by kind of layer.
        kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
        return max([limit, *(int((k.get("factor") or 1) * (k.get("original_max_position_embeddings") or 0)) for k in kinds)])

    def check_length(self, tokens: int) -> None:
        """Raise `UserError` if so many tokens are more than the context: what a network says beyond it measures nothing."""
        if self.context is not None and tokens > self.context:
            raise UserError(
                f"{tokens} tokens are to be read at once, and {self.name} has positions for {self.context}; give shorter prompts, fewer "
                "new tokens (max_new_tokens) or a smaller text_context."
            )

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the generation config's and the tokenizer's."""
        named: Any = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        listed = named if isinstance(named, list | tuple) else [named]
        return frozenset(i for i in [*listed, self.tokenizer.eos_token_id] if isinstance(i, int))

    @property
    def pad_id(self) -> int:
        """Token that fills batches: the tokenizer's pad, else eos, else unk, else 0. Masked always, so it changes no result."""
        own = self.tokenizer
        return next((int(i) for i in (own.pad_token_id, own.eos_token_id, own.unk_token_id) if isinstance(i, int)), 0)


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Return the chat model in a local folder or Hub repository; of a vision-language model the text side is used.

    Weights are read from safetensors only. `dtype` is auto (the checkpoint's own), float32, bfloat16 or float16; `device` is auto
    (the first accelerator, else cpu), cpu, cuda, cuda:1, mps and so on.

    Raises:
        UserError: missing or incomplete folder, no safetensors weights, weights that do not fit the architecture or hold NaN or
            infinity, unknown dtype or device, no chat template.
    """
    place = sources.find(source, revision=revision)
    wanted, target = sources.dtype_of(dtype), sources.device_of(device)
    config = sources.read_config(place, trust_remote_code=trust_remote_code)
    tokenizer, tokenizer_notes = load_tokenizer(place, trust_remote_code=trust_remote_code)
    chat_template(tokenizer)
    loader = AutoModelForImageTextToText if sources.is_vision_language(config) else AutoModelForCausalLM
    options: dict[str, Any] = {"config": config, "dtype": wanted, "trust_remote_code": trust_remote_code}
    # Other shapes are allowed here only to be refused by name below.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if target.type != "cpu":
        options["device_map"] = {"": target}
    try:
        loaded: Any = loader.from_pretrained(place.name, revision=place.revision, use_safetensors=True, **options)
    except (OSError, SafetensorError, ImportError, ValueError) as error:
        raise UserError(f"The weights of {place.name} cannot be read: {sources.first_line(error)}") from error
    network, info = loaded
    load_notes = check_complete(info, place.name)
    return wrap(network, tokenizer, name=place.name, notes=(*tokenizer_notes, *load_notes))


def wrap(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, notes: tuple[str, ...] = ()) -> ChatModel:
    """Return a model that is in memory already as a `ChatModel`; it is put in evaluation mode and its gradients are switched off.

    Raises:
        UserError: no chat template, decoder blocks that cannot be told, or NaN, infinity or no data in a parameter.
    """
    chat_template(tokenizer)
    block_names = find_blocks(network)
    network.eval().requires_grad_(requires_grad=False)
    check_finite(network, name=name)
    if tokenizer.pad_token_id is None:
        notes = (*notes, "The tokenizer has no pad token; batches are filled with another one, masked, and the tokenizer stays as it is.")
    for note in notes:
        log.info("%s: %s", name, note)
    return ChatModel(network, tokenizer, name, fingerprint(network), block_names, notes)


def find_blocks(network: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the text decoder's blocks, found by structure: the outermost module list of blocks, with one a layer.

    Raises:
        UserError: if no list or more than one fits; it names the candidates.
    """
    config = network.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise UserError(
            f"{type(network).__name__} does not say how many layers its text decoder has, so this architecture is not supported."
        )
    lists = {name: m for name, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) and all(map(_is_block, m))}
    decoder = network.get_decoder()
    # Some networks name their output head as decoder; then every list counts.
    inside = {name: m for name, m in lists.items() if _inside(m, decoder)} or lists
    fits = [name for name, m in inside.items() if len(m) == count]
    outermost = [name for name in fits if name.count(".") == min(other.count(".") for other in fits)]
    if len(outermost) != 1:
        everything = ", ".join(f"{name} ({len(m)})" for name, m in lists.items())
        found = ", ".join(outermost) if outermost else f"none; all module lists: {everything or 'none'}"
        raise UserError(
            f"The {count} text decoder blocks of {type(network).__name__} cannot be told by structure (candidates: {found}); "
            "exactly one module list with that many blocks is needed, so this architecture is not supported."
        )
    return tuple(f"{outermost[0]}.{i}" for i in range(count))


def fingerprint(network: PreTrainedModel) -> str:
    """Return SHA-256 over the configuration and each stored tensor's name, dtype, shape and bytes; aliases count once, by name.

    Where the model is (folder, device) does not enter: a saved and reloaded model has the same fingerprint.
    """
    tensors = network.state_dict()
    places = {name: (t.device, t.data_ptr(), tuple(t.shape), t.stride()) if t.numel() else name for name, t in tensors.items()}
    return digest(network.config.to_dict(), places, tensors.__getitem__)


def digest(config: Mapping[str, Any], places: Mapping[str, Hashable], read: Callable[[str], Tensor]) -> str:
    """Return the fingerprint of tensors that are read one by one; those of one place are aliases."""
    found = hashlib.sha256(json.dumps(_identity(config), sort_keys=True, default=str).encode())
    seen: dict[Hashable, tuple[str, str]] = {}
    for name in sorted(places):
        if places[name] in seen:
            first, described = seen[places[name]]
            found.update(f"\n{name}={first} {described}\n".encode())
            continue
        tensor = read(name)
        described = f"{tensor.dtype} {tuple(tensor.shape)}"
        seen[places[name]] = name, described
        found.update(f"\n{name}={name} {described}\n".encode())
        for piece in _pieces(tensor):
            found.update(piece)
    return found.hexdigest()


def check_finite(network: nn.Module, *, name: str) -> None:
    """Check every floating-point parameter.

    Raises:
        UserError: naming the first parameter with NaN or infinity in it and how many of its values are, or the first without data.
    """
    for parameter_name, parameter in network.named_parameters():
        if parameter.is_meta:
            raise without_data(parameter_name)
        if not parameter.is_floating_point():
            continue
        values = parameter.detach() if parameter.dtype.itemsize > 1 else parameter.detach().float()
        # Both ends are NaN where any value is. Reads once and writes nothing: forty times as fast as `isfinite` in half precision.
        if values.numel() and not all(map(torch.isfinite, torch.aminmax(values))):
            bad = int((~torch.isfinite(values)).sum())
            raise UserError(
                f"Parameter {parameter_name} of {name} holds NaN or infinity in {bad} of {parameter.numel()} values, and nothing can be "
                "measured with it; get the checkpoint again, or load it in a wider dtype."
            )


def without_data(parameter: str) -> UserError:
    """Return the error for a parameter that is not in memory between calls, so that it can be neither read nor written."""
    return UserError(
        f"Parameter {parameter} has no data (offloaded to the CPU or to disk, or on the meta device); load the whole model, on one device "
        "or spread over several without offloading, or edit its checkpoint on disk (resect apply), which needs memory for one block only."
    )


def load_tokenizer(place: sources.Source, *, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the tokenizer with a chat template where there is one, and what is to be noted about it.

    Raises:
        UserError: if it cannot be read or has no vocabulary.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(place.name, revision=place.revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The tokenizer of {place.name} cannot be read: {sources.first_line(error)}") from error
    tokenizer = cast(PreTrainedTokenizerBase, loaded)
    # Without its files a tokenizer is made all the same, with nothing but special tokens in it.
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise UserError(
            f"The tokenizer of {place.name} has no vocabulary (tokenizer.json is missing or empty); get the complete checkpoint."
        )
    if tokenizer.chat_template:
        return tokenizer, ()
    text = sources.processor_template(place)
    if text is None:
        return tokenizer, ()
    tokenizer.chat_template = text
    return tokenizer, ("The chat template is the processor's (chat_template.json); a saved tokenizer carries it along.",)


def check_complete(info: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return notes on stored weights that were not read, from the loading report of transformers.

    Raises:
        UserError: for weights that leave part of the network randomly initialised.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        first = (missing or mismatched)[0]
        raise UserError(
            f"The weights of {name} do not fit its config.json: {len(missing)} parameters are missing and {len(mismatched)} have another "
            f"shape, the first is {first}; get the complete checkpoint."
        )
    unread = sorted(info["unexpected_keys"])
    if not unread:
        return ()
    return (f"{len(unread)} stored tensors belong to no part of the network and were not read, the first is {unread[0]}.",)


def _inside(module: nn.Module, decoder: nn.Module) -> bool:
    return any(part is module for part in decoder.modules())


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


def _identity(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(k): _identity(v) for k, v in config.items() if k not in _NOT_IDENTITY}
    return [_identity(v) for v in config] if isinstance(config, list | tuple) else config


def _pieces(tensor: Tensor) -> Iterator[Any]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for piece in flat.split(1 << 26):
        yield piece.cpu().numpy()
