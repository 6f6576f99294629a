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
    removed: Float[Tensor, "layer *direction d_model"],
    read: Float[Tensor, "layer *direction d_model"],
    strengths: Float[Tensor, " layer"],
) -> EditPlan:
    """Return the plan y' = y - gamma U (C^T y), with U = removed and C = read (U^T read)^-1: one direction a layer, or several.

    At gamma 1 an output along `removed` is gone, whatever else the writer says, and an output that `read` does not see is
    untouched. With C proportional to E[y y^T]^-1 U the benign drift E|U C^T y|^2 is the least that removes U.
    Behind a norm with gain g the writer adds g * y to the residual stream, so U is divided and C multiplied by g.

    Raises:
        UserError: if `read` does not see all of `removed` at an edited layer, or a number there is not finite.
    """
    edits = []
    for writer in writers:
        gamma = float(strengths[writer.layer])
        if gamma == 0:
            continue
        u, c = (side[writer.layer].double().reshape(-1, side.shape[-1]).T for side in (removed, read))
        if not all(bool(x.isfinite().all()) for x in (u, c, strengths[writer.layer])):
            raise UserError(
                f"A direction or the strength of layer {writer.layer} is NaN or infinite; set its strength to 0 or give another."
            )
        overlap = u.T @ c
        cosines = torch.nn.functional.normalize(u, dim=0).T @ torch.nn.functional.normalize(c, dim=0)
        if torch.linalg.svdvals(cosines).min() <= 1e-9:
            raise UserError(
                f"The direction that reads layer {writer.layer} does not see the one to be removed; set the strength of that layer to 0."
            )
        c = torch.linalg.solve(overlap.T, c.T).T
        if writer.gain is not None:
            gain = writer.gain.detach().cpu().double()[:, None]
            u, c = _divide(u, gain), c * gain
        edits.append(WriterEdit(writer.name, u.float().contiguous(), c.float().contiguous(), gamma))
    return EditPlan(tuple(edits))


def _divide(vector: Tensor, gain: Tensor) -> Tensor:
    floor = GAIN_FLOOR * gain.abs().max()
    usable = gain.abs() > floor
    return torch.where(usable, vector / torch.where(usable, gain, 1.0), 0.0)
