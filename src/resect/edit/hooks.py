"""An edit tried out: forward hooks that change what the writers put out, and leave no trace."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resect.edit.algebra import apply_to_weight, preserving_scales
from resect.edit.plan import EditPlan, WriterEdit
from resect.errors import UserError
from resect.models.forward import Call, first_tensor, with_first_tensor
from resect.models.load import ChatModel, without_data
from resect.models.writers import Writer


@contextmanager
def applied(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> Iterator[None]:
    """Apply the plan to every forward pass inside the `with` block: y' = y - gamma U (C^T y) at each writer.

    Outputs are replaced, never changed in place. Nested plans act one after another, the inner one last. The hooks are gone after the
    block, whatever happens in it.

    Raises:
        UserError: if the plan names a writer that the model does not have, or keeps norms of a writer whose outputs do not tell them.
    """
    with ExitStack() as stack:
        for writer, edit in matched(writers, plan, d_model=model.d_model):
            module = model.network.get_submodule(writer.module)
            if edit.preserve == "nothing":
                stack.callback(module.register_forward_hook(_OutputEdit(edit)).remove)
                continue
            scale, outputs = _preserving(writer, edit, module)
            if scale is not None:
                stack.callback(module.register_forward_pre_hook(_ScaledInput(scale), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(outputs).remove)
        yield


def matched(writers: Sequence[Writer], plan: EditPlan, *, d_model: int) -> list[tuple[Writer, WriterEdit]]:
    """Return each edit of the plan with its writer.

    Raises:
        UserError: if the plan names a writer that is not there, or has factors of another width than the model.
    """
    by_name = {writer.name: writer for writer in writers}
    missing = [edit.writer for edit in plan.edits if edit.writer not in by_name]
    if missing:
        raise UserError(
            f"The edit names {len(missing)} writers that this model lacks, the first is {missing[0]}; use the model it was made for."
        )
    for edit in plan.edits:
        if edit.u.shape[0] != d_model:
            raise UserError(
                f"The edit of {edit.writer} is for width {edit.u.shape[0]}, but this model has {d_model}; use the model it was made for."
            )
    return [(by_name[edit.writer], edit) for edit in plan.edits]


class _Values:
    """Tensors brought to each device and dtype once."""

    def __init__(self, *values: Tensor) -> None:
        self._values = values
        self._cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def like(self, y: Tensor) -> tuple[Tensor, ...]:
        key = (y.device, y.dtype)
        if key not in self._cache:
            self._cache[key] = tuple(value.to(y) for value in self._values)
        return self._cache[key]


class _OutputEdit:
    """Hook for y' = y - gamma U (C^T y); gamma is multiplied in, so that two small matrix products a call remain."""

    def __init__(self, edit: WriterEdit) -> None:
        self._factors = _Values(edit.c, (-edit.gamma * edit.u.double()).T)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        y = first_tensor(output)
        return with_first_tensor(output, self.edited(widened(y)).to(y.dtype))

    def edited(self, y: Tensor) -> Tensor:
        c, minus_u = self._factors.like(y)
        flat = y.reshape(-1, y.shape[-1])
        return torch.addmm(flat, flat @ c, minus_u).view(y.shape)


class _PreservingEdit(_OutputEdit):
    """Hook for y' = q (E (p (y - b))) + b', E = I - gamma U C^T, the edit of a weight that keeps its norms.

    Multiplied out it is y' = p q y + (-gamma q U) ((p C)^T y) + t, with t the rest: one product more than an edit that keeps nothing.
    """

    def __init__(self, edit: WriterEdit, p: Tensor, q: Tensor, bias: Tensor, edited_bias: Tensor) -> None:
        p, q, bias, edited_bias, u, c = (x.cpu().double() for x in (p, q, bias, edited_bias, edit.u, edit.c))
        c, minus_u = p[:, None] * c, (-edit.gamma * q[:, None] * u).T
        self._factors = _Values(c, minus_u, p * q, edited_bias - (p * q * bias + (bias @ c) @ minus_u))
        self._shifts = bool(bias.any())

    def edited(self, y: Tensor) -> Tensor:
        c, minus_u, scale, shift = self._factors.like(y)
        flat = y.reshape(-1, y.shape[-1])
        edited = torch.addmm(flat * scale, flat @ c, minus_u).view(y.shape)
        return edited + shift if self._shifts else edited


class _ScaledInput:
    """Hook that scales every feature of a module's input."""

    def __init__(self, scale: Tensor) -> None:
        self._scale = _Values(scale)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = Call(args, kwargs)
        x = widened(call.hidden())
        scaled = call.with_hidden((x * self._scale.like(x)[0]).to(call.hidden().dtype))
        return scaled.args, dict(scaled.kwargs)


def widened(y: Tensor) -> Tensor:
    """Return half-precision outputs as float32, others as they are."""
    # Rounded factors would point elsewhere and leave a part of the component.
    return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y


def _preserving(writer: Writer, edit: WriterEdit, module: nn.Module) -> tuple[Tensor | None, _PreservingEdit]:
    """Return the scale of the inputs, if there is one, and the hook on the outputs of a linear module whose weight keeps its norms."""
    own = {f"{writer.module}.{name}": value.detach() for name, value in module.named_parameters(recurse=False)}
    weights = [p for p in writer.parameters if p.layout != "bias"]
    if len(weights) != 1 or weights[0].layout not in ("out_in", "in_out") or any(p.name not in own for p in writer.parameters):
        raise UserError(
            f"The edit keeps {edit.preserve} norms, but writer {writer.name} is no single linear layer, and its outputs do not tell the "
            "norms of its weights; bake the edit instead."
        )
    if own[weights[0].name].is_meta:
        raise without_data(weights[0].name)
    if any(isinstance(hook, _OutputEdit) for hook in module._forward_hooks.values()):
        raise UserError(f"Writer {writer.name} is edited already, and an edit that keeps {edit.preserve} norms reads unedited weights.")
    factors: dict[str, Any] = {"u": edit.u, "c": edit.c, "gamma": edit.gamma, "preserve": edit.preserve}
    weight, layout = own[weights[0].name], weights[0].layout
    p, q = preserving_scales(weight, layout, **factors)
    bias = next((own[p.name] for p in writer.parameters if p.layout == "bias"), torch.zeros(len(edit.u), device=weight.device))
    edited_bias, one = apply_to_weight(bias, "bias", **factors), torch.ones(len(edit.u), device=weight.device)
    if edit.preserve == "column":
        return q.flatten(), _PreservingEdit(edit, one, one, bias, edited_bias)
    return None, _PreservingEdit(edit, p.flatten(), q.flatten(), bias, edited_bias)
