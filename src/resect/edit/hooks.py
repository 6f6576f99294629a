"""An edit tried out: forward hooks that change what the writers put out, and leave no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resect.edit.plan import EditPlan, WriterEdit
from resect.errors import UserError
from resect.models.forward import first_tensor, with_first_tensor
from resect.models.load import ChatModel
from resect.models.writers import Writer


@contextmanager
def applied(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> Iterator[None]:
    """Apply the plan to every forward pass inside the `with` block: y' = y - gamma U (C^T y) at each writer.

    Outputs are replaced, never changed in place. Nested plans act one after another, the inner one last. The hooks are gone after the
    block, whatever happens in it.

    Raises:
        UserError: if the plan names a writer that the model does not have.
    """
    with ExitStack() as stack:
        for writer, edit in matched(writers, plan, d_model=model.d_model):
            module = model.network.get_submodule(writer.module)
            stack.callback(module.register_forward_hook(_hook(edit)).remove)
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


def _hook(edit: WriterEdit) -> Callable[[nn.Module, Any, Any], Any]:
    """The factors are brought to each device once, gamma multiplied in: two small matrix products per call remain."""
    cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def factors(y: Tensor) -> tuple[Tensor, Tensor]:
        key = (y.device, y.dtype)
        if key not in cache:
            cache[key] = edit.c.to(y), (-edit.gamma * edit.u.double()).T.to(y)
        return cache[key]

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        y = first_tensor(output)
        # Half precision is widened: rounded factors would point elsewhere and leave a part of the component.
        work = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
        c, minus_u = factors(work)
        flat = work.reshape(-1, work.shape[-1])
        changed = torch.addmm(flat, flat @ c, minus_u).view(y.shape).to(y.dtype)
        return with_first_tensor(output, changed)

    return hook
