"""Many edits tried out in one batch: every row has a plan of its own, and keeps it when rows leave or change places."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from resect.edit.hooks import matched, widened
from resect.edit.plan import EditPlan, WriterEdit
from resect.errors import UserError
from resect.models.forward import first_tensor, with_first_tensor
from resect.models.load import ChatModel
from resect.models.writers import Writer


class RowEdits:
    """Which plan each row of the next batch has: at first plan i for row i, later what `place` says."""

    def __init__(self, plans: int) -> None:
        self._count = plans
        self.rows = torch.arange(plans)
        self.suspended = False

    def place(self, plans: Sequence[int]) -> None:
        """Say which plan, by its index, each row of the batches from now on has; raises `UserError` for an index without a plan."""
        rows = torch.as_tensor(plans, dtype=torch.long)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self._count:
            raise UserError(f"There are {self._count} edits, so rows may have edits 0 to {self._count - 1}; got {rows.tolist()}.")
        self.rows = rows

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the network run as if there were no edits, with any number of rows, inside the `with` block."""
        self.suspended = True
        try:
            yield
        finally:
            self.suspended = False


@contextmanager
def applied_rows(model: ChatModel, writers: Sequence[Writer], plans: Sequence[EditPlan]) -> Iterator[RowEdits]:
    """Apply a plan of its own to each row of the batch: row i computes what it computes alone under `applied(plans[i])`.

    Every batch inside the `with` block must have one row a plan, in their order, or be what the yielded value was told by `place`. Ranks
    may differ; an empty plan leaves its row exactly as the base computes it. Equal plans share their factors.

    Raises:
        UserError: what `applied` raises, a plan that keeps norms, a batch of another size, or a writer whose output has no batch axis.
    """
    distinct = list({id(plan): plan for plan in plans}.values())
    number = {id(plan): k for k, plan in enumerate(distinct)}
    found = [{writer.name: edit for writer, edit in matched(writers, plan, d_model=model.d_model)} for plan in distinct]
    rows = RowEdits(len(plans))
    which = torch.tensor([number[id(plan)] for plan in plans])
    with ExitStack() as stack:
        for writer in writers:
            edits = [row.get(writer.name) for row in found]
            if any(edit is not None for edit in edits):
                hook = _RowHook(writer, edits, model.d_model, rows, which)
                stack.callback(model.network.get_submodule(writer.module).register_forward_hook(hook).remove)
        yield rows


class _RowHook:
    """Hook for y'[i] = y[i] - gamma_i U_i (C_i^T y[i]), the factors of all plans filled up with zeros to one rank."""

    def __init__(self, writer: Writer, edits: Sequence[WriterEdit | None], d_model: int, rows: RowEdits, which: Tensor) -> None:
        kept = next((edit.preserve for edit in edits if edit is not None and edit.preserve != "nothing"), None)
        if kept is not None:
            raise UserError(
                f"The edit of {writer.name} keeps {kept} norms, which a batch with one edit a row cannot; apply it alone, or bake it."
            )
        rank = max(edit.u.shape[1] for edit in edits if edit is not None)
        c, minus_u = torch.zeros(len(edits), d_model, rank), torch.zeros(len(edits), rank, d_model)
        for plan, edit in enumerate(edits):
            if edit is not None:
                c[plan, :, : edit.c.shape[1]] = edit.c
                minus_u[plan, : edit.u.shape[1]] = -edit.gamma * edit.u.T
        self._writer, self._rows, self._which = writer.name, rows, which
        self._factors, self._placed, self._gathered = (c, minus_u), None, (c, minus_u)

    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        if self._rows.suspended:
            return output
        y = first_tensor(output)
        if y.ndim != 3:
            raise UserError(
                f"Writer {self._writer} puts out shape {list(y.shape)}, without an axis for the rows of the batch, so no row can have an "
                "edit of its own; run the edits one after another."
            )
        if y.shape[0] != len(self._rows.rows):
            raise UserError(f"There are edits for {len(self._rows.rows)} rows, but the batch has {y.shape[0]}; give one plan a row.")
        work = widened(y)
        c, minus_u = self._of_rows(work)
        return with_first_tensor(output, torch.baddbmm(work, work @ c, minus_u).to(y.dtype))

    def _of_rows(self, work: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the rows as they are placed, gathered once a placement."""
        if self._placed is not self._rows.rows or self._gathered[0].device != work.device or self._gathered[0].dtype != work.dtype:
            plans = self._which[self._rows.rows]
            c, minus_u = (factor[plans].to(work) for factor in self._factors)
            self._placed, self._gathered = self._rows.rows, (c, minus_u)
        return self._gathered
