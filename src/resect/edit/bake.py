"""An edit written into the parameters, in memory: W' = W - gamma U (C^T W) for every parameter of every writer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resect.edit.algebra import apply_to_weight
from resect.edit.hooks import matched
from resect.edit.plan import EditPlan, WriterEdit
from resect.errors import UserError
from resect.layout import OUTPUT_AXIS, Layout
from resect.models.load import ChatModel, without_data
from resect.models.writers import Writer


@dataclass(frozen=True)
class ParameterChange:
    """What baking did to one parameter.

    `change` is ||W' - W|| / ||W||. `left` is, for each column c of C, ||c^T W'|| / ||c^T W||: |1 - gamma| up to rounding for
    orthonormal factors; 0 where the parameter had nothing along c. An edit that keeps row norms leaves more: the leak.
    """

    name: str
    writer: str
    gamma: float
    change: float
    left: tuple[float, ...]


@dataclass(frozen=True)
class Untouched:
    """A part of the model without an edit, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class BakeReport:
    """Every parameter that was changed and every writer that was not."""

    changes: tuple[ParameterChange, ...]
    untouched: tuple[Untouched, ...]


def bake(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> BakeReport:
    """Write the plan into the network's parameters, in place, and return what changed, as measured on the stored values.

    The model then computes what it computed under `hooks.applied`. Float32 algebra (float64 for small tensors); each parameter keeps
    its dtype. Everything is checked before the first parameter is written.

    Raises:
        UserError: a writer that the model does not have, a parameter shared with another part of the network, or one without data.
    """
    work = _work(model, writers, plan)
    edited = {edit.writer for edit in plan.edits}
    untouched = tuple(Untouched(w.name, f"strength 0 at layer {w.layer}") for w in writers if w.name not in edited)
    return BakeReport(tuple(_bake_one(*item) for item in work), untouched)


def edited_weight(weight: Tensor, layout: Layout, edit: WriterEdit) -> Tensor:
    """Return a parameter of a writer as its edit leaves it, a new tensor: `algebra.apply_to_weight` with all that the edit says."""
    return apply_to_weight(weight, layout, u=edit.u, c=edit.c, gamma=edit.gamma, preserve=edit.preserve)


@contextmanager
def baked(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> Iterator[BakeReport]:
    """Bake the plan for the `with` block and put the original values back after it, bit for bit, whatever happens in it."""
    originals = [(parameter, parameter.detach().clone()) for _, _, _, parameter, _ in _work(model, writers, plan)]
    try:
        yield bake(model, writers, plan)
    finally:
        with torch.no_grad():
            for parameter, original in originals:
                parameter.copy_(original)


def _bake_one(name: str, layout: Layout, edit: WriterEdit, parameter: nn.Parameter, writer: str) -> ParameterChange:
    with torch.no_grad():
        new = edited_weight(parameter.detach(), layout, edit)
        before, after = (_along(value, layout, edit.c) for value in (parameter.detach(), new))
        norm = float(parameter.norm(dtype=torch.float32))
        change = float((new.float() - parameter.detach().float()).norm()) / norm if norm else 0.0
        parameter.copy_(new)
    left = tuple(float(a / b) if b else 0.0 for a, b in zip(after, before, strict=True))
    return ParameterChange(name, writer, edit.gamma, change, left)


def _along(value: Tensor, layout: Layout, c: Tensor) -> Tensor:
    """Return ||c^T W|| for each column c."""
    wide = value.double() if value.numel() < 1 << 23 and value.device.type != "mps" else value.float()
    components = wide.movedim(OUTPUT_AXIS[layout], -1) @ c.to(wide)
    return components.reshape(-1, c.shape[1]).norm(dim=0)


def _work(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> list[tuple[str, Layout, WriterEdit, nn.Parameter, str]]:
    """Return what there is to write, checked: each parameter belongs to one writer and to nothing else."""
    names = _names_of_tensors(model.network)
    work = []
    for writer, edit in matched(writers, plan, d_model=model.d_model):
        for described in writer.parameters:
            parameter = model.network.get_parameter(described.name)
            if parameter.is_meta:
                raise without_data(described.name)
            others = sorted(names[_place(parameter)] - {described.name})
            if others:
                raise UserError(
                    f"Parameter {described.name} of writer {writer.name} is shared with {others[0]}, which the edit would change as well; "
                    "untie them first, or apply the edit by hooks."
                )
            work.append((described.name, described.layout, edit, parameter, writer.name))
    return work


def _names_of_tensors(network: nn.Module) -> dict[tuple[torch.device, int], set[str]]:
    names: dict[tuple[torch.device, int], set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(_place(parameter), set()).add(name)
    return names


def _place(parameter: nn.Parameter) -> tuple[torch.device, int]:
    return parameter.device, parameter.data_ptr()
