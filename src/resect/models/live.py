"""Bytes of tensors, counted as they come and go: on networks with data or, with fused kernels replaced by what they hold, without."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Notes the bytes of all tensors made inside it, as they come and go: `now`, and the most there were, `peak`.

    What was there before, weights for one, does not count, nor do views of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the operation and note new storages."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            # Networks ask whether the positions have no gap; without data the answer is yes.
            return True
        for tensor in _tensors((args, kwargs)):
            self._note(tensor.untyped_storage(), size=0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor.untyped_storage(), size=tensor.untyped_storage().nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, *, size: int) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))


class FusedKernels(TorchFunctionMode):
    """Fused kernels as they hold memory: attention its output and one number a row, grouped experts their output.

    Without data torch would write out all attention weights, and knows grouped experts in bfloat16 only. For a backward pass both keep what
    they were given and put out.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Replace the two, and nothing else."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, value = args[0], args[2]
            sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
            return _Kernel.apply((*sums.shape, value.shape[-1]), sums, *args[:3])
        if func is getattr(torch, "_grouped_mm", None):
            return _Kernel.apply((args[0].shape[0], args[1].shape[-1]), None, *args[:2])
        return func(*args, **(kwargs or {}))


class _Kernel(torch.autograd.Function):
    """A kernel of which only the memory is looked at."""

    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], beside: Tensor | None, *inputs: Tensor) -> Tensor:
        """Return an output of that shape; `beside` is kept with it."""
        made = inputs[-1].new_empty(shape)
        ctx.save_for_backward(*inputs, made)
        ctx.beside = beside
        return made

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient of every input that needs one."""
        *inputs, _ = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        return (None, None, *(torch.empty_like(x) if wanted else None for x, wanted in zip(inputs, needed, strict=True)))
