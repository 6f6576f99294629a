"""The permutation null: how long the difference would be if harmful and harmless were labels without meaning."""

import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.samples import samples


def permutation_p(
    harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline, *, draws: int = 999, seed: int = 0
) -> Float[Tensor, " layer"]:
    """Return the p-value of |mean(harmful - subtrahend)| per layer: (1 + draws at least as long) / (1 + draws).

    Labels are shuffled among the prompts that the baseline compares with each other: among all (unmatched), within a category, or
    within a pair (which turns its difference over). Exact where those are exchangeable without an effect, for any number of draws.
    """
    data = samples(harmful, baseline)
    blocks = comparable(data.weights)
    generator = torch.Generator().manual_seed(seed)
    keys = blocks.double() + torch.rand(draws, len(blocks), generator=generator, dtype=torch.float64)
    shuffled = torch.empty(draws, len(blocks), dtype=torch.float64)
    shuffled[:, blocks.argsort(stable=True)] = data.whole[keys.argsort(1)]
    observed = data.norms_squared(data.whole[None])
    # A pair turned over gives the same length up to rounding, which must count as equal.
    longer = data.norms_squared(shuffled) >= observed * (1 - 1e-9)
    return (1 + longer.sum(1)).double() / (1 + draws)


def comparable(weights: Float[Tensor, "prompt row"]) -> Int[Tensor, " sample"]:
    """Return the block of every prompt, then of every row: what the weights connect, directly or through others."""
    prompts, rows = weights.shape
    links = torch.zeros(prompts + rows, prompts + rows)
    links[:prompts, prompts:] = (weights > 0).float()
    return torch.from_numpy(connected_components(links.numpy(), directed=False)[1]).long()
