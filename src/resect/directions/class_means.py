"""One difference of means a class: what a self-organising map with one neuron a class finds."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.values import Directions
from resect.errors import UserError


def members(labels: Int[Tensor, " prompt"] | None, prompts: int) -> list[Int[Tensor, " member"]]:
    """Return the prompts of each class, in the order of the class indices.

    Raises:
        UserError: no classes, another number of them than prompts, an index with no prompt, or one class only.
    """
    if labels is None:
        raise UserError("This method needs the class of every harmful prompt, and none were given; give the prompts a category.")
    if len(labels) != prompts:
        raise UserError(f"There are {prompts} harmful prompts and {len(labels)} classes; give every prompt one class.")
    classes = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
    empty = [c for c, found in enumerate(classes) if len(found) == 0]
    if empty:
        raise UserError(f"Class {empty[0]} of {len(classes)} has no harmful prompt; number the classes from 0 without gaps.")
    if len(classes) == 1:
        raise UserError(
            "All harmful prompts are of one class, and this method needs at least two; use mean_difference, or give categories."
        )
    return classes


def class_means(
    harmful: Float[Tensor, "prompt layer d_model"], baseline: Baseline, *, labels: Int[Tensor, " prompt"] | None = None, seed: int = 0
) -> Directions:
    """Return one direction a class: the mean of (harmful - subtrahend) over its prompts; importance is their number."""
    del seed
    classes = members(labels, len(harmful))
    differences = harmful.double() - baseline.subtrahends.double()
    vectors = torch.stack([differences[found].mean(0) for found in classes], dim=1)
    counts = torch.tensor([float(len(found)) for found in classes])
    return Directions(vectors.float(), "class_means", importance=counts.expand(vectors.shape[:2]))
