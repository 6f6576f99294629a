"""What rounding alone does to a model: the drift of a model from itself when every number that it computes is moved by a part of one ulp.

Two computations of one model that differ in their kernels, batches or order of sums differ so, and a drift no larger says nothing about
an edit. This is Monte Carlo arithmetic (Parker 1997) at the outputs of modules: no constant to choose, and the depth and the size of the
logits count as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.token_drift import Read, drift_along
from resect.models.forward import first_tensor, with_first_tensor
from resect.models.load import ChatModel

MOST_PROMPTS = 32
"""Prompts that the floor is measured on: it is a size, not a figure to be quoted, and one more pass of all of them would tell no more."""


@contextmanager
def nudged(model: ChatModel, *, seed: int = 0) -> Iterator[None]:
    """Move each number that a part of the network puts out by a random part of one ulp of its dtype, up or down, inside the `with` block.

    y' = y (1 + eps xi), xi uniform in [-1, 1], at every module without parts and at every block. Rounding each of two results moves their
    difference with at most half of that variance, so what this makes is at least twice what rounding makes there.
    """
    eps = torch.finfo(model.network.dtype).eps
    generators: dict[torch.device, torch.Generator] = {}

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        y = first_tensor(output)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return output
        if y.device not in generators:
            generators[y.device] = torch.Generator(y.device).manual_seed(seed)
        xi = torch.rand(y.shape, generator=generators[y.device], device=y.device).mul_(2).sub_(1)
        return with_first_tensor(output, xi.mul_(eps).add_(1).mul_(y).to(y.dtype))

    parts = {module for module in model.network.modules() if next(module.children(), None) is None}
    with ExitStack() as stack:
        for module in parts.union(model.blocks):
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def coarser(base: ChatModel, other: ChatModel) -> ChatModel:
    """Return the model whose dtype rounds more, the first of two alike."""
    return max((base, other), key=lambda model: torch.finfo(model.network.dtype).eps)


def floors(model: ChatModel, read: Read, lengths: Sequence[int], *, vocab: int) -> dict[str, float]:
    """Return the mean drift of a nudged model from itself over a few prompts: at the first token (nats), along responses (nats per token).

    `read` reads the model along its responses, which have these lengths in tokens. Raises what `drift_along` raises.
    """

    def moved(rows: Sequence[int]) -> TokenLogprobs:
        with nudged(model):
            return read(rows)

    # The same prompts are read unmoved first, so whether the network heeds padding is known by then and not asked of a nudged one.
    found = drift_along(read, moved, lengths[:MOST_PROMPTS], vocab=vocab)
    return {"kl_first_token": float(found.first(found.kl).mean()), "kl_tokens": float(found.per_response(found.kl).mean())}


def with_floor(measured: Mapping[str, Any], floor: float | None) -> dict[str, Any]:
    """Return a measurement as JSON with the field `floor`, where there is one: a value no larger is what rounding alone makes."""
    return dict(measured) if floor is None else {**measured, "floor": floor}
