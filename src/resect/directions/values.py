"""The value every direction method returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the residual stream, one stack per layer.

    `vectors` keeps raw norms (only the edit normalises), float32; `method` names how they were found.
    """

    vectors: Float[Tensor, "layer direction d_model"]
    method: str

    def __post_init__(self) -> None:
        if not torch.isfinite(self.vectors).all():
            layers = (~torch.isfinite(self.vectors)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"directions of method {self.method!r} hold NaN or Inf at layers {layers}")

    @property
    def unit(self) -> Float[Tensor, "layer direction d_model"]:
        """The vectors at norm 1 (a zero vector stays zero)."""
        return torch.nn.functional.normalize(self.vectors, dim=-1)
