"""Every method by name. A new one is a file with a function of this signature, and one entry here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.class_means import class_means
from resect.directions.leace import leace, leace_classes
from resect.directions.logistic import logistic
from resect.directions.mean_difference import mean_of_differences
from resect.directions.random import random, random_classes
from resect.directions.som import som, som_svd
from resect.directions.svd import svd, svd_centred
from resect.directions.values import Directions
from resect.directions.whitened import whitened


@runtime_checkable
class Find(Protocol):
    """What every method is called with; options of its own have defaults and are bound with `functools.partial`."""

    def __call__(
        self,
        harmful: Float[Tensor, "prompt layer d_model"],
        baseline: Baseline,
        *,
        labels: Int[Tensor, " prompt"] | None = None,
        seed: int = 0,
    ) -> Directions:
        """Return the directions of harmful rows against a baseline; `labels` is each prompt's class, `seed` fixes what is random."""
        ...


@dataclass(frozen=True)
class Method:
    """A method: its function, whether it finds several directions a layer, needs classes of the harmful prompts, or is a control."""

    name: str
    label: str
    find: Find
    several: bool = False
    needs_labels: bool = False
    control: bool = False


_ALL = (
    Method("mean_difference", "difference of means", mean_of_differences),
    Method("class_means", "difference of means, one a class", class_means, several=True, needs_labels=True),
    Method("svd", "SVD of per-prompt differences", svd, several=True),
    Method("svd_centred", "SVD of centred per-prompt differences", svd_centred, several=True),
    Method("som", "self-organising map, one a class", som, several=True, needs_labels=True),
    Method("som_svd", "self-organising maps, made orthogonal by SVD", som_svd, several=True, needs_labels=True),
    Method("whitened", "whitened difference of means (shrinkage LDA)", whitened),
    Method("leace", "least-squares concept erasure", leace),
    Method("leace_classes", "least-squares concept erasure, one a class", leace_classes, several=True, needs_labels=True),
    Method("logistic", "ridge logistic probe", logistic),
    Method("random", "random direction of the same norm", random, control=True),
    Method(
        "random_classes", "random directions of the same norms, one a class", random_classes, several=True, needs_labels=True, control=True
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
