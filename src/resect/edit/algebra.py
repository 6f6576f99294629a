"""The one formula of every edit, y' = y - gamma U (C^T y), on outputs and on the parameters that produce them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from resect.layout import OUTPUT_AXIS, Layout

Preserve = Literal["nothing", "column", "row"]
"""Which norms of a weight an edit keeps: none, of each column (a vector in the residual stream), or of each row (one output)."""

_GONE = 1e-6  # a column or row of which the edit leaves less than this share has no norm that scaling could give back

# float64 for tensors of up to 32 MiB (as float32): the cost is small, and rounding then stays below that of storing the result.
_DOUBLE_UP_TO = 1 << 23


def orthonormal_basis(vectors: Float[Tensor, "direction d_model"], *, tolerance: float = 1e-6) -> Float[Tensor, "d_model k"]:
    """Return an orthonormal basis of the span of `vectors`, one column per independent direction, in their order.

    Gram-Schmidt in float64, each vector orthogonalised twice. A vector of which less than `tolerance` (of its norm) lies outside the
    span of those before it is dropped, so k <= direction; a zero vector is always dropped.
    """
    columns, _ = _gram_schmidt(vectors, tolerance)
    return columns.float()


def scaled_factors(
    vectors: Float[Tensor, "direction d_model"], scales: Float[Tensor, " direction"]
) -> tuple[Float[Tensor, "d_model k"], Float[Tensor, "d_model k"]]:
    """Return U = Q diag(s), C = Q with Q the orthonormal basis of `vectors`: I - gamma U C^T removes gamma s_j of what direction j adds
    to the span of those before it. With all scales 1 this is the joint removal of the span.
    """
    columns, kept = _gram_schmidt(vectors, 1e-6)
    return (columns * scales.double()[kept]).float(), columns.float()


def _gram_schmidt(vectors: Float[Tensor, "direction d_model"], tolerance: float) -> tuple[Float[Tensor, "d_model k"], list[int]]:
    """Return float64 orthonormal columns and which vectors they come from."""
    columns: list[Tensor] = []
    kept: list[int] = []
    for index, vector in enumerate(vectors.double()):
        norm = vector.norm()
        if norm == 0:
            continue
        rest = vector / norm
        for _ in range(2):
            for column in columns:
                rest = rest - column * (column @ rest)
        if rest.norm() >= tolerance:
            columns.append(rest / rest.norm())
            kept.append(index)
    if not columns:
        return vectors.new_zeros((vectors.shape[1], 0), dtype=torch.float64), kept
    return torch.stack(columns, dim=1), kept


def sequential_factors(
    vectors: Float[Tensor, "direction d_model"], *, gamma: float, scales: Float[Tensor, " direction"] | None = None
) -> tuple[Float[Tensor, "d_model direction"], Float[Tensor, "d_model direction"]]:
    """Return U, C with I - gamma U C^T = (I - gamma s_n v_n v_n^T) ... (I - gamma s_1 v_1 v_1^T), v unit vectors: v_1 is removed first.

    Unlike the joint form it keeps a part of every direction but the last when the directions are not orthogonal. Unset scales s are 1.
    """
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    u = units.T if scales is None else units.T * scales.double()
    columns: list[Tensor] = []
    for k, unit in enumerate(units):
        overlaps = [gamma * (u[:, j] @ unit) * columns[j] for j in range(k)]
        columns.append(unit - sum(overlaps, start=torch.zeros_like(unit)))
    return u.float().contiguous(), torch.stack(columns, dim=1).float()


def apply_to_output(
    y: Float[Tensor, "*any d_model"], *, u: Float[Tensor, "d_model k"], c: Float[Tensor, "d_model k"], gamma: float
) -> Float[Tensor, "*any d_model"]:
    """Return y' = y - gamma U (C^T y) in a new tensor, computed in the dtype of `y`."""
    flat = y.reshape(-1, y.shape[-1])
    u, c = u.to(y), c.to(y)
    return torch.addmm(flat, flat @ c, u.T, alpha=-gamma).view(y.shape)


def apply_to_rows(
    rows: Float[Tensor, "row d_in"],
    *,
    u: Float[Tensor, "row k"],
    read: Float[Tensor, "k d_in"],
    gamma: float,
    out: Float[Tensor, "row d_in"] | None = None,
) -> Float[Tensor, "row d_in"]:
    """Return some rows of W' = W - gamma U (C^T W), W of layout out_in, where `read` is C^T W and `u` the rows of U; in `out` if given."""
    return torch.addmm(rows, u, read, alpha=-gamma, out=out)


def apply_to_weight(
    weight: Float[Tensor, "*any"],
    layout: Layout,
    *,
    u: Float[Tensor, "d_model k"],
    c: Float[Tensor, "d_model k"],
    gamma: float,
    preserve: Preserve = "nothing",
) -> Float[Tensor, "*any"]:
    """Return W' = W - gamma U (C^T W) along the output axis of `layout`, in a new tensor of W's dtype.

    A module that computes y = W x + b gives y' = y - gamma U (C^T y) for every x once W and b are both replaced. Computed in float32
    at least, in float64 where the tensor is small. With `preserve` the edited weight is scaled, see `preserving_scales`: a bias counts
    as one more column, and has no row.

    Raises:
        ValueError: if the output axis of `weight` does not have the length of the factors.
    """
    axis = OUTPUT_AXIS[layout]
    if weight.ndim <= axis or weight.shape[axis] != u.shape[0]:
        raise ValueError(f"A parameter of shape {tuple(weight.shape)} has no output axis of length {u.shape[0]} in layout {layout!r}.")
    columns = _columns(weight, layout)
    if preserve == "nothing" or (preserve == "row" and layout == "bias"):
        edited = apply_to_output(columns, u=u, c=c, gamma=gamma)
    else:
        before, after = preserving_scales(weight, layout, u=u, c=c, gamma=gamma, preserve=preserve)
        edited = apply_to_output(columns * before, u=u, c=c, gamma=gamma) * after
    return edited.movedim(-1, axis).to(weight.dtype).contiguous()


def preserving_scales(
    weight: Float[Tensor, "*any"],
    layout: Layout,
    *,
    u: Float[Tensor, "d_model k"],
    c: Float[Tensor, "d_model k"],
    gamma: float,
    preserve: Preserve,
) -> tuple[Float[Tensor, "*before"], Float[Tensor, "*after"]]:
    """Return the factors p, q with W'^T = ((p W^T) E^T) q, E = I - gamma U C^T, whose result keeps the norms of W; output axis last.

    Column: p = 1 and q_j = |w_j| / |E w_j| per input j, so c^T W' = 0 still holds at gamma 1; for orthonormal U = C it is
    1 / sqrt(1 - gamma (2 - gamma) |C^T w_j|^2 / |w_j|^2). Row, with n the row norms: p = 1 / n, q_i = n_i / |row i of E (W / n)| per
    output i; scaling outputs does not commute with E, so a part of the component comes back. What the edit takes away whole stays
    away: no scale gives its norm back.
    """
    columns = _columns(weight, layout)
    if preserve == "column":
        norm, left = (x.norm(dim=-1, keepdim=True) for x in (columns, apply_to_output(columns, u=u, c=c, gamma=gamma)))
        return torch.ones_like(norm), torch.where(left > _GONE * norm, norm / left, 1.0)
    norm = columns.norm(dim=-2, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0.0)
    left = apply_to_output(columns * inverse, u=u, c=c, gamma=gamma).norm(dim=-2, keepdim=True)
    return inverse, norm * torch.where(left > _GONE, 1 / left, 1.0)


def _columns(weight: Float[Tensor, "*any"], layout: Layout) -> Float[Tensor, "*moved"]:
    """Return the weight with its output axis last, in the precision of the algebra."""
    work = torch.float64 if weight.numel() <= _DOUBLE_UP_TO and weight.device.type != "mps" else torch.float32
    return weight.to(work).movedim(OUTPUT_AXIS[layout], -1)
