"""Contrast baselines: which harmless rows are subtracted from which harmful prompt.

Every baseline is one matrix of weights: line i says how the harmless rows are averaged into what is subtracted from harmful prompt i.
An unmatched mean weighs all rows alike, a matched one the rows with the prompt's own key (its category, its pair, its framing).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resect.errors import UserError


@dataclass(frozen=True, eq=False)
class Baseline:
    """Harmless rows and how they are subtracted: line i of `weights` (none negative, sum 1) belongs to harmful prompt i."""

    name: str
    rows: Float[Tensor, "row layer d_model"]
    weights: Float[Tensor, "prompt row"]

    def __post_init__(self) -> None:
        if bool((self.weights < 0).any()) or not torch.allclose(self.weights.sum(1), self.weights.new_ones(()), atol=1e-5):
            raise ValueError(f"the weights of baseline {self.name!r} must not be negative and must add up to 1 for every prompt")

    @property
    def subtrahends(self) -> Float[Tensor, "prompt layer d_model"]:
        """What is subtracted from each harmful prompt, float64 sums, float32 result."""
        return torch.einsum("pr,rld->pld", self.weights.double(), self.rows.double()).float()

    @property
    def shares(self) -> Float[Tensor, " row"]:
        """Each row's part in the mean over all subtrahends (sum 1): what a method that needs the rows themselves weighs them by."""
        return self.weights.mean(0)

    @property
    def used(self) -> "Baseline":
        """The same baseline without the rows that nothing is subtracted from."""
        kept = self.weights.amax(0) > 0
        return Baseline(self.name, self.rows[kept], self.weights[:, kept])


def unmatched(prompts: int, rows: int) -> Float[Tensor, "prompt row"]:
    """Return the weights of one mean over all rows for every prompt (the usual difference of means)."""
    return torch.full((prompts, rows), 1 / rows, dtype=torch.float64)


def matched(keys: Sequence[Hashable], row_keys: Sequence[Hashable]) -> Float[Tensor, "prompt row"]:
    """Return the weights of the mean over the rows with the prompt's own key.

    The key decides what is matched: a category (topic-matched, Petrov's configuration b), a pair id (matched per pair), a form or
    framing (paraphrase-matched), a predicted category (class-conditional means).

    Raises:
        UserError: naming the first keys that no row has.
    """
    return _mean_over(_same(keys, row_keys), keys, "has no harmless prompt to be matched with")


def other(keys: Sequence[Hashable], row_keys: Sequence[Hashable]) -> Float[Tensor, "prompt row"]:
    """Return the weights of the mean over the rows with any key but the prompt's own (other harmless topics).

    Raises:
        UserError: naming the first keys that all rows have.
    """
    return _mean_over(~_same(keys, row_keys), keys, "leaves no harmless prompt of another kind")


def mixed(on_topic: Float[Tensor, "prompt row"], off_topic: Float[Tensor, "prompt row"], *, share: float) -> Float[Tensor, "prompt row"]:
    """Return share * on_topic + (1 - share) * off_topic: a mean with that share of on-topic prompts in it.

    Raises:
        UserError: for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"The share of on-topic prompts must lie between 0 and 1, got {share:g}; 0.5 mixes both halves.")
    return share * on_topic + (1 - share) * off_topic


def _same(keys: Sequence[Hashable], row_keys: Sequence[Hashable]) -> Bool[Tensor, "prompt row"]:
    index = {key: n for n, key in enumerate(dict.fromkeys([*keys, *row_keys]))}
    return torch.tensor([index[k] for k in keys])[:, None] == torch.tensor([index[k] for k in row_keys])[None, :]


def _mean_over(chosen: Bool[Tensor, "prompt row"], keys: Sequence[Hashable], complaint: str) -> Float[Tensor, "prompt row"]:
    counts = chosen.sum(1, keepdim=True)
    empty = list(dict.fromkeys(str(keys[i]) for i in (counts[:, 0] == 0).nonzero().flatten().tolist()))
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"{empty[0]!r}{more} {complaint}; add harmless prompts with another key, or leave those harmful prompts out.")
    return chosen.double() / counts
