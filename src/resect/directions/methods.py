"""Every method by name. A new one is a file with a function of this signature, and one entry here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from resect.directions.baselines import Baseline
from resect.directions.mean_difference import mean_of_differences
from resect.directions.values import Directions


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


_ALL = (Method("mean_difference", "difference of means", mean_of_differences),)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
