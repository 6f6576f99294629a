"""The control: as many random directions as there could be real ones, with the real ones' norms."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.class_means import class_means
from resect.directions.mean_difference import mean_of_differences
from resect.directions.values import Directions


def random(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    per_class: bool = False,
) -> Directions:
    """Return Gaussian directions, as many and as long as those of `mean_difference` (or, per class, of `class_means`)."""
    find = class_means if per_class else mean_of_differences
    found = find(harmful, baseline, labels=labels, seed=seed)
    noise = torch.randn(found.vectors.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors = torch.nn.functional.normalize(noise, dim=-1) * found.vectors.double().norm(dim=-1, keepdim=True)
    return Directions(vectors.float(), "random_classes" if per_class else "random", importance=found.importance)


random_classes = partial(random, per_class=True)
