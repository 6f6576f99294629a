"""Categories of unlabelled rows: the nearest class mean of activations, with its accuracy."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.class_means import members
from resect.errors import UserError


@dataclass(frozen=True, eq=False)
class Prediction:
    """The class of every unlabelled row, read at one layer; `accuracy` (fraction 0-1) is that of labelled rows left out, by layer.

    `chance` is the share of the largest class. The accuracy is that among labelled rows: of the unlabelled ones nothing is known.
    """

    labels: Int[Tensor, " row"]
    layer: int
    accuracy: Float[Tensor, " layer"]
    chance: float


def predict_classes(
    labelled: Float[Tensor, "prompt layer d_model"], labels: Int[Tensor, " prompt"], rows: Float[Tensor, "row layer d_model"]
) -> Prediction:
    """Return the class whose mean is nearest to each row, at the layer where leaving each labelled row out is right most often.

    Each side is centred on its own mean first, since labelled rows are harmful and the others not: what they differ by as sides is no
    topic. The accuracy leaves one row out of its class's mean; the first layer wins a tie.

    Raises:
        UserError: fewer than two classes, or a class with one prompt only (left out, it has no mean).
    """
    classes = members(labels, len(labelled))
    lonely = next((c for c, found in enumerate(classes) if len(found) < 2), None)
    if lonely is not None:
        raise UserError(f"Class {lonely} has a single prompt, so its accuracy cannot be told; give at least two prompts of every class.")
    known, others = (side.double() - side.double().mean(0) for side in (labelled, rows))
    means = torch.stack([known[found].mean(0) for found in classes], dim=1)
    accuracy = (_left_out(known, labels, means, classes).argmin(2) == labels[:, None]).double().mean(0)
    layer = int(accuracy.argmax())
    nearest = torch.cdist(others[:, layer], means[layer]).argmin(1)
    return Prediction(nearest, layer, accuracy, max(map(len, classes)) / len(labelled))


def _left_out(known: Tensor, labels: Tensor, means: Tensor, classes: list[Tensor]) -> Float[Tensor, "prompt layer class"]:
    """Return distances to the class means, to a row's own class as if it were not in it: x - m' = (x - m) n / (n - 1)."""
    distances = torch.cdist(known.transpose(0, 1), means).transpose(0, 1)
    sizes = torch.tensor([float(len(found)) for found in classes], dtype=torch.float64)
    own = torch.nn.functional.one_hot(labels, len(classes)).bool()
    return torch.where(own[:, None, :], distances * sizes / (sizes - 1), distances)
