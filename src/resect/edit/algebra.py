"""The one formula of every edit, y' = y - gamma U (C^T y), on outputs and on the parameters that produce them."""

import torch
from jaxtyping import Float
from torch import Tensor

from resect.layout import OUTPUT_AXIS, Layout

# float64 for tensors of up to 32 MiB (as float32): the cost is small, and rounding then stays below that of storing the result.
_DOUBLE_UP_TO = 1 << 23


def orthonormal_basis(vectors: Float[Tensor, "direction d_model"], *, tolerance: float = 1e-6) -> Float[Tensor, "d_model k"]:
    """Return an orthonormal basis of the span of `vectors`, one column per independent direction, in their order.

    Gram-Schmidt in float64, each vector orthogonalised twice. A vector of which less than `tolerance` (of its norm) lies outside the
    span of those before it is dropped, so k <= direction; a zero vector is always dropped.
    """
    columns: list[Tensor] = []
    for vector in vectors.double():
        norm = vector.norm()
        if norm == 0:
            continue
        rest = vector / norm
        for _ in range(2):
            for column in columns:
                rest = rest - column * (column @ rest)
        if rest.norm() >= tolerance:
            columns.append(rest / rest.norm())
    if not columns:
        return vectors.new_zeros((vectors.shape[1], 0), dtype=torch.float32)
    return torch.stack(columns, dim=1).float()


def sequential_factors(
    vectors: Float[Tensor, "direction d_model"], *, gamma: float
) -> tuple[Float[Tensor, "d_model direction"], Float[Tensor, "d_model direction"]]:
    """Return U, C with I - gamma U C^T = (I - gamma v_n v_n^T) ... (I - gamma v_1 v_1^T), v unit vectors: v_1 is removed first.

    Unlike the joint form it keeps a part of every direction but the last when the directions are not orthogonal.
    """
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    u = units.T
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


def apply_to_weight(
    weight: Float[Tensor, "*any"], layout: Layout, *, u: Float[Tensor, "d_model k"], c: Float[Tensor, "d_model k"], gamma: float
) -> Float[Tensor, "*any"]:
    """Return W' = W - gamma U (C^T W) along the output axis of `layout`, in a new tensor of W's dtype.

    A module that computes y = W x + b gives y' = y - gamma U (C^T y) for every x once W and b are both replaced. Computed in float32
    at least, in float64 where the tensor is small.

    Raises:
        ValueError: if the output axis of `weight` does not have the length of the factors.
    """
    axis = OUTPUT_AXIS[layout]
    if weight.ndim <= axis or weight.shape[axis] != u.shape[0]:
        raise ValueError(f"A parameter of shape {tuple(weight.shape)} has no output axis of length {u.shape[0]} in layout {layout!r}.")
    work = torch.float64 if weight.numel() <= _DOUBLE_UP_TO and weight.device.type != "mps" else torch.float32
    moved = weight.to(work).movedim(axis, -1)
    edited = apply_to_output(moved, u=u, c=c, gamma=gamma)
    return edited.movedim(-1, axis).to(weight.dtype).contiguous()
