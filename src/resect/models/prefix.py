"""Blocks below an edit give what they gave without it: their outputs are kept once and handed out instead of computed.

Measured on the shipped organism, a pass that edits one layer costs 0.6 of a whole one on average.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from resect.models.load import ChatModel

Key = tuple[tuple[int, ...], bytes]


class Prefix:
    """The outputs of every block for the batches of some forward passes without a cache of keys and values."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self._kept: dict[Key, list[Any]] = {}
        self._now: Key | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the outputs of all blocks in every forward pass of the `with` block."""

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if self._now is not None:
                    self._kept.setdefault(self._now, [None] * len(self.model.blocks))[layer] = output

            return hook

        with ExitStack() as stack:
            self._watch(stack)
            for layer, block in enumerate(self.model.blocks):
                stack.callback(block.register_forward_hook(keep(layer)).remove)
            yield

    @contextmanager
    def below(self, layer: int) -> Iterator[None]:
        """Inside the `with` block, blocks before `layer` are not computed for batches that were kept; others run as ever.

        Only right where nothing is edited before `layer`, and for passes without a cache of keys and values.
        """

        def stand_in(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found = None if self._now is None else self._kept.get(self._now)
                return own(*args, **kwargs) if found is None else found[index]

            return forward

        with ExitStack() as stack:
            self._watch(stack)
            for index, block in enumerate(self.model.blocks[:layer]):
                # Models spread over devices have a forward of their own on each block.
                own = vars(block).get("forward")
                stack.callback(delattr, block, "forward") if own is None else stack.callback(setattr, block, "forward", own)
                block.forward = stand_in(index, block.forward)
            yield

    def _watch(self, stack: ExitStack) -> None:
        """Note which batch a forward pass is about; without a mask among the arguments no batch is known."""

        def note(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
            self._now = None
            if ids is not None and mask is not None and not kwargs.get("use_cache"):
                self._now = tuple(ids.shape), torch.stack([ids, mask]).cpu().numpy().tobytes()

        stack.callback(self.model.network.register_forward_pre_hook(note, with_kwargs=True).remove)
