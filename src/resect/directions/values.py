"""The value every direction method returns."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the residual stream, one stack per layer.

    `vectors` keeps raw norms (only the edit normalises), float32; `method` names how they were found. `importance` orders the directions
    of a layer (singular value, number of prompts, …), where the method has an order. `read` is there if the method is oblique: an edit then
    reads with `read` and removes `vectors`, with read_i . vectors_j = 1 for i = j and 0 otherwise (LEACE); else both are `vectors`.
    """

    vectors: Float[Tensor, "layer direction d_model"]
    method: str
    importance: Float[Tensor, "layer direction"] | None = None
    read: Float[Tensor, "layer direction d_model"] | None = None

    def __post_init__(self) -> None:
        if not torch.isfinite(self.vectors).all():
            layers = (~torch.isfinite(self.vectors)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"directions of method {self.method!r} hold NaN or Inf at layers {layers}")

    @property
    def unit(self) -> Float[Tensor, "layer direction d_model"]:
        """The vectors at norm 1 (a zero vector stays zero)."""
        return torch.nn.functional.normalize(self.vectors, dim=-1)

    def first(self, k: int) -> "Directions":
        """Return the k most important directions of every layer, most important first (the first k, where there is no order).

        Raises:
            UserError: if there are fewer than k.
        """
        count = self.vectors.shape[1]
        if not 1 <= k <= count:
            raise UserError(f"{k} directions a layer were asked for, and method {self.method!r} found {count}; ask for 1 to {count}.")
        if self.importance is None:
            return replace(self, vectors=self.vectors[:, :k], read=None if self.read is None else self.read[:, :k])
        order = self.importance.argsort(dim=1, descending=True, stable=True)[:, :k]
        pick = order[:, :, None].expand(-1, -1, self.vectors.shape[2])
        read = None if self.read is None else self.read.gather(1, pick)
        return replace(self, vectors=self.vectors.gather(1, pick), importance=self.importance.gather(1, order), read=read)
