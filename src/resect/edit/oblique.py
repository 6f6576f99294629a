"""Oblique edits: read with one direction, remove along another (the rank-one form of LEACE, arXiv 2306.03819)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resect.edit.plan import EditPlan, WriterEdit, WriterLike
from resect.errors import UserError

GAIN_FLOOR = 1e-3
"""Gains nearer to 0 than this share of the largest are not divided by: the norm all but deletes that coordinate anyway."""


def oblique_plan(
    writers: Sequence[WriterLike],
    removed: Float[Tensor, "layer d_model"],
    read: Float[Tensor, "layer d_model"],
    strengths: Float[Tensor, " layer"],
) -> EditPlan:
    """Return the plan y' = y - gamma u (c^T y), with u = removed and c = read / (read . removed).

    At gamma 1 an output along `removed` is gone, whatever else the writer says, and an output that `read` does not see is
    untouched. With c proportional to E[y y^T]^-1 u the benign drift E[(c^T y)^2] |u|^2 is the least that removes u.
    Behind a norm with gain g the writer adds g * y to the residual stream, so u is divided and c multiplied by g.

    Raises:
        UserError: if `read` is orthogonal to `removed` at an edited layer.
    """
    edits = []
    for writer in writers:
        gamma = float(strengths[writer.layer])
        if gamma == 0:
            continue
        u, c = removed[writer.layer].double(), read[writer.layer].double()
        overlap = u @ c
        if overlap.abs() <= 1e-9 * u.norm() * c.norm():
            raise UserError(
                f"The direction that reads layer {writer.layer} does not see the one to be removed; set the strength of that layer to 0."
            )
        c = c / overlap
        if writer.gain is not None:
            gain = writer.gain.detach().cpu().double()
            u, c = _divide(u, gain), c * gain
        edits.append(WriterEdit(writer.name, u[:, None].float(), c[:, None].float(), gamma))
    return EditPlan(tuple(edits))


def _divide(vector: Tensor, gain: Tensor) -> Tensor:
    floor = GAIN_FLOOR * gain.abs().max()
    usable = gain.abs() > floor
    return torch.where(usable, vector / torch.where(usable, gain, 1.0), 0.0)
