"""Singular vectors of the per-prompt differences, centred and not: two methods that are often taken for one."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.values import Directions
from resect.errors import UserError

COUNT = 9
"""Directions a layer where nothing else says how many: as many as arXiv 2603.22061 has classes."""


def directions_asked(count: int | None, labels: Int[Tensor, " prompt"] | None) -> int:
    """Return how many directions to find: `count`, else one for each class, else `COUNT`."""
    if count is not None:
        return count
    return COUNT if labels is None else len(labels.unique())


def svd(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    count: int | None = None,
    centred: bool = False,
) -> Directions:
    """Return the leading right singular vectors of the differences D = harmful - subtrahend, each s / sqrt(prompts) long.

    Not centred, the first is near the mean difference. Centred on that mean, D holds what varies between prompts: the mean is subtracted
    first, so what all prompts share is found only where they share it unevenly. Every vector points along the mean difference.

    Raises:
        UserError: more directions than prompts (centred: than prompts less one) or than d_model.
    """
    del seed
    wanted = directions_asked(count, labels)
    differences = (harmful.double() - baseline.subtrahends.double()).transpose(0, 1)
    mean = differences.mean(1, keepdim=True)
    most = min(len(harmful) - centred, harmful.shape[2])
    if not 1 <= wanted <= most:
        raise UserError(f"{wanted} directions were asked for, and {len(harmful)} prompts give at most {most}; ask for fewer.")
    vectors, s = leading(differences - mean if centred else differences, wanted)
    length = s / len(harmful) ** 0.5
    oriented = along(vectors * length[..., None], mean)
    return Directions(oriented.float(), "svd_centred" if centred else "svd", importance=length.float())


svd_centred = partial(svd, centred=True)


def leading(
    rows: Float[Tensor, "layer n d_model"], count: int
) -> tuple[Float[Tensor, "layer count d_model"], Float[Tensor, "layer count"]]:
    """Return the first `count` right singular vectors per layer and their singular values."""
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    return vh[:, :count], s[:, :count]


def along(vectors: Float[Tensor, "layer k d_model"], reference: Float[Tensor, "layer 1 d_model"]) -> Float[Tensor, "layer k d_model"]:
    """Return the vectors, each turned to have no negative component along the reference (a singular vector has no sign of its own)."""
    return torch.where(vectors @ reference.mT < 0, -vectors, vectors)
