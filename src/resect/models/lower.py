"""Layers below an edit, run once: what they put out for a batch is kept, and given again when the same batch comes under another edit.

The network's own code stays in charge. Inside `LowerLayers.below` the lower blocks answer from memory, keys and values included, when a
batch of prompts comes again; where an edit begins higher than those before it, only the blocks in between are run. Whether a network allows
that (no block may hand anything but its output and its cache to later ones) is found out by trying, on a few tokens.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resect.models.forward import cache_argument, first_tensor, with_first_tensor
from resect.models.load import ChatModel
from resect.models.prefix import begun_with

_Key = tuple[Any, ...]

MOST_BYTES = 1 << 30
"""What is kept at most; further batches are computed anew."""


@dataclass(eq=False)
class _Kept:
    """What the lower blocks left behind after one batch: outputs just below where edits began, and their layers of the cache if it has one.

    An output is kept last: with it are the cache's layers of its block and of all before.
    """

    outputs: dict[int, Any] = field(default_factory=dict)
    layers: dict[int, Any] = field(default_factory=dict)

    def known(self, first: int) -> int:
        """Return how many of the blocks 0 to first - 1 can answer from memory."""
        return max((layer + 1 for layer in self.outputs if layer < first), default=0)


class LowerLayers:
    """Memory of the blocks below edits, for one model."""

    def __init__(self, model: ChatModel, *, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._most, self._bytes = model, most_bytes, 0
        self._kept: dict[_Key, _Kept] = {}
        self._works: dict[int, bool] = {}
        self._key: _Key | None = None
        self._known = 0
        self.reused = 0

    @contextmanager
    def below(self, first: int) -> Iterator[None]:
        """Let blocks 0 to first - 1 answer from memory inside the `with` block; nothing may change what they compute.

        Only passes over prompts are remembered. Where the network does not allow it, everything is computed as ever.
        """
        if first < 1 or not self._allowed(first):
            yield
            return
        with self._patched(first):
            yield

    @contextmanager
    def _patched(self, first: int) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._model.network.register_forward_pre_hook(self._recognise(first), with_kwargs=True).remove)
            for layer, block in enumerate(self._model.blocks[:first]):
                stack.callback(_restore, block, block.__dict__.get("forward"))
                block.forward = self._answering(block.forward, layer, last=layer == first - 1)
            yield

    def _recognise(self, first: int) -> Callable[..., None]:
        name = cache_argument(self._model.network)

        def hook(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            ids, past = kwargs.get("input_ids"), kwargs.get(name)
            # A decoding step is not looked into: reading it would wait for the device.
            prefix = begun_with(past) if past is not None and ids is not None and ids.shape[1] > 1 else None
            prompts = ids is not None and (past is None or prefix is not None)
            parts = [_bytes(kwargs.get(k)) for k in ("input_ids", "attention_mask")] if prompts else []
            self._key = (bool(kwargs.get("use_cache")), prefix, *parts) if prompts else None
            kept = self._kept.get(self._key) if self._key is not None else None
            self._known = 0 if kept is None else kept.known(first)

        return hook

    def _answering(self, forward: Callable[..., Any], layer: int, *, last: bool) -> Callable[..., Any]:
        """Return what stands in for the forward pass of a lower block."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            if self._key is None:
                return forward(*args, **kwargs)
            cache = next((v for v in (*args, *kwargs.values()) if hasattr(v, "layers") and hasattr(v, "update")), None)
            if layer < self._known:
                kept = self._kept[self._key]
                if cache is not None:
                    cache.layers[layer] = copy.deepcopy(kept.layers[layer])
                self.reused += 1
                # What comes before the last known output is read by nobody. That one is copied, as some blocks add to their input in place.
                output = kept.outputs[self._known - 1]
                return with_first_tensor(output, first_tensor(output).clone()) if layer == self._known - 1 else output
            output = forward(*args, **kwargs)
            self._keep(layer, output if last else None, cache)
            return output

        return answer

    def _keep(self, layer: int, output: Any, cache: Any) -> None:
        if self._bytes > self._most or self._key is None:
            return
        kept = self._kept.setdefault(self._key, _Kept())
        if cache is not None:
            kept.layers[layer] = copy.deepcopy(cache.layers[layer])
            self._bytes += sum(v.nbytes for v in vars(kept.layers[layer]).values() if isinstance(v, Tensor))
        if output is not None:
            kept.outputs[layer] = with_first_tensor(output, first_tensor(output).clone())
            self._bytes += first_tensor(output).nbytes

    def _allowed(self, first: int) -> bool:
        """Return whether a batch given again has the very logits that it had, with a cache and without."""
        if first not in self._works:
            ids = torch.arange(8, device=self._model.device)[None]
            trial = LowerLayers(self._model)
            self._works[first] = all(trial._repeats(first, {"input_ids": ids, "use_cache": cached}) for cached in (False, True))
        return self._works[first]

    @torch.no_grad()
    def _repeats(self, first: int, inputs: dict[str, Any]) -> bool:
        plain = self._model.network(**inputs).logits
        try:
            with self._patched(first):
                again = [self._model.network(**inputs).logits for _ in range(2)]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError):
            return False
        return self.reused > 0 and all(torch.equal(a, plain) for a in again)


def _bytes(value: Tensor | None) -> tuple[tuple[int, ...], bytes] | None:
    return None if value is None else (tuple(value.shape), value.cpu().numpy().tobytes())


def _restore(block: nn.Module, forward: Any) -> None:
    """Give a block the forward pass back that it had: its own (an accelerator's wrapper) or its class's."""
    del block.forward
    if forward is not None:
        block.forward = forward
