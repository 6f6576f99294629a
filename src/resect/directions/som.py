"""Self-organising maps, one a class (arXiv 2603.22061; the maps of arXiv 2511.08379), plain and made orthogonal by an SVD."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from minisom import MiniSom
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.class_means import members
from resect.directions.svd import along, leading
from resect.directions.values import Directions
from resect.errors import UserError


@dataclass(frozen=True)
class Grid:
    """How a map is trained. Grid and iterations are those of arXiv 2603.22061, which leaves the rest open.

    Learning rate and width of the neighbourhood (`sigma`, in neurons; Gaussian) are those of arXiv 2511.08379's code. `winners` neurons
    are taken for each class, those with the most prompts. `read` says what a winner's direction is: its own weights (`neuron`), or the
    mean of the differences that it wins (`members`). `training` is `random` (one prompt after another, in random order) or `batch`
    (Kohonen's batch map: every neuron becomes the neighbourhood's weighted mean of all prompts at once, and has no learning rate).
    After a finite number of random steps a neuron still follows the last draws, by sqrt(learning_rate / 2) standard deviations at most;
    a batch map has come to rest, and one neuron is the class mean. `iterations` counts prompts shown, in batches of the whole class.
    """

    rows: int = 3
    columns: int = 3
    iterations: int = 10_000
    learning_rate: float = 0.01
    sigma: float = 0.33
    winners: int = 1
    read: Literal["neuron", "members"] = "neuron"
    training: Literal["random", "batch"] = "random"

    @property
    def neurons(self) -> int:
        """How many neurons the map has."""
        return self.rows * self.columns


PAPER = Grid()


def som(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    grid: Grid = PAPER,
    progress: Callable[[], None] = lambda: None,
) -> Directions:
    """Return the winners of one map for each class and layer, trained on harmful - subtrahend; importance is the prompts each wins.

    Starts from random prompts of the class and draws prompts in random order, so that adding a constant to all differences moves the
    neurons by that constant. `progress` is called after every map.

    Raises:
        UserError: a class with fewer prompts than the map has neurons, or fewer neurons with prompts than winners.
    """
    classes = members(labels, len(harmful))
    small = next(((c, len(found)) for c, found in enumerate(classes) if len(found) < grid.neurons), None)
    if small:
        raise UserError(
            f"Class {small[0]} has {small[1]} prompts and its map {grid.neurons} neurons; give at least as many prompts, or a smaller grid."
        )
    differences = (harmful.double() - baseline.subtrahends.double()).transpose(0, 1)
    layers: list[list[tuple[Tensor, Tensor]]] = []
    for rows in differences:
        layers.append([])
        for found in classes:
            layers[-1].append(_winners(rows[found], grid, seed))
            progress()
    vectors = torch.stack([torch.cat([v for v, _ in layer]) for layer in layers])
    counts = torch.stack([torch.cat([c for _, c in layer]) for layer in layers])
    return Directions(vectors.float(), "som", importance=counts.float())


def som_svd(
    harmful: Float[Tensor, "prompt layer d_model"],
    baseline: Baseline,
    *,
    labels: Int[Tensor, " prompt"] | None = None,
    seed: int = 0,
    grid: Grid = PAPER,
) -> Directions:
    """Return the maps' directions replaced by as many orthogonal ones, ordered by singular value: configuration c of arXiv 2603.22061."""
    return orthogonalised(som(harmful, baseline, labels=labels, seed=seed, grid=grid), "som_svd")


def orthogonalised(found: Directions, method: str) -> Directions:
    """Return the right singular vectors of a layer's directions, as long as their singular values, pointing along the mean direction."""
    rows = found.vectors.double()
    vectors, s = leading(rows, rows.shape[1])
    oriented = along(vectors * s[..., None], rows.mean(1, keepdim=True))
    return Directions(oriented.float(), method, importance=s.float())


def _winners(rows: Float[Tensor, "member d_model"], grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
    """Return the winning neurons of one map and how many rows each wins.

    A map knows its rows by their distances only, so they are written in an orthonormal basis of their span first: the same map, and a
    step costs as many numbers as there are prompts, not d_model.
    """
    basis = torch.linalg.qr(rows.T).Q
    small = (rows @ basis).numpy()
    codes = _train(small, grid, seed)
    nearest = np.linalg.norm(small[:, None, :] - codes, axis=-1).argmin(1)
    counts = np.bincount(nearest, minlength=grid.neurons)
    if (counts > 0).sum() < grid.winners:
        raise UserError(
            f"Only {(counts > 0).sum()} neurons of a map win prompts, and {grid.winners} winners a class were asked for; ask for fewer."
        )
    best = np.argsort(-counts, kind="stable")[: grid.winners]
    chosen = codes[best] if grid.read == "neuron" else np.stack([small[nearest == k].mean(0) for k in best])
    return torch.from_numpy(chosen) @ basis.T, torch.from_numpy(counts[best])


def _train(rows: np.ndarray, grid: Grid, seed: int) -> np.ndarray:
    shape, batch = (grid.rows, grid.columns, rows.shape[1]), grid.training == "batch"
    rate = 1.0 if batch else grid.learning_rate
    som = MiniSom(*shape, sigma=grid.sigma, learning_rate=rate, random_seed=seed)  # pyright: ignore[reportArgumentType]
    som.random_weights_init(rows)
    if batch:
        som.train_batch_offline(rows, -(-grid.iterations // len(rows)))
    else:
        som.train_random(rows, grid.iterations)
    return som.get_weights().reshape(grid.neurons, -1)
