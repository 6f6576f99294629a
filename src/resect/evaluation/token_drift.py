"""Drift along given responses, token by token, of a model against a base: only a few numbers a token are kept, never a distribution.

Base and model are read a few prompts at a time and compared at once, over the full vocabulary, so memory does not grow with the prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation.drift import kl_rows, same_responses, top1_flips
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.refusal_split import kl_of_refusing

Read = Callable[[Sequence[int]], TokenLogprobs]
"""Log-probabilities along the responses to the prompts with these numbers, from one model."""
_MOST = 1 << 24  # float32 values of one model held at once: 64 MB


@dataclass(frozen=True, eq=False)
class TokenDrift:
    """Per token of the responses: KL(base‖model) and KL(model‖base) in nats, whether the likeliest token changed, entropy added in nats.

    Response i owns the tokens `offsets[i]` to `offsets[i + 1]`. `refusing` has one value a response: the part of the first token's KL that
    is about refusing or not (`refusal_split`); None where no refusal tokens are known. A token that one side cannot say has an infinite KL.
    """

    kl: Float[Tensor, " token"]
    reverse: Float[Tensor, " token"]
    flipped: Bool[Tensor, " token"]
    entropy_shift: Float[Tensor, " token"]
    offsets: tuple[int, ...]
    refusing: Float[Tensor, " prompt"] | None = None

    def first(self, values: Float[Tensor, " token"] | Bool[Tensor, " token"]) -> Tensor:
        """Return the value at the first token of each response."""
        return values[list(self.offsets[:-1])]

    def per_response(self, values: Float[Tensor, " token"] | Bool[Tensor, " token"]) -> Float[Tensor, " prompt"]:
        """Return the mean over the tokens of each response."""
        return torch.stack([values[a:b].double().mean() for a, b in pairwise(self.offsets)])

    def answering(self) -> Float[Tensor, " prompt"] | None:
        """Return what is left of KL(base‖model) summed over each response when the part about refusing is taken out, in nats."""
        if self.refusing is None:
            return None
        total = torch.stack([self.kl[a:b].sum() for a, b in pairwise(self.offsets)])
        # inf − inf: where refusing alone is infinite, nothing can be said of the rest.
        return torch.where(self.refusing.isinf(), torch.inf, total - self.refusing)

    def to_json(self) -> dict[str, Any]:
        """Return the values as lists; what is infinite as null."""
        named = {"kl": self.kl, "reverse": self.reverse, "entropy_shift": self.entropy_shift, "refusing": self.refusing}
        values = {name: None if v is None else [x if abs(x) < float("inf") else None for x in v.tolist()] for name, v in named.items()}
        return values | {"flipped": self.flipped.tolist(), "offsets": list(self.offsets)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TokenDrift":
        """Return what `to_json` wrote."""

        def floats(name: str) -> Tensor:
            return torch.tensor([float("inf") if x is None else x for x in data[name]], dtype=torch.float64)

        refusing = None if data["refusing"] is None else floats("refusing")
        flipped = torch.tensor(data["flipped"], dtype=torch.bool)
        return cls(floats("kl"), floats("reverse"), flipped, floats("entropy_shift"), tuple(data["offsets"]), refusing)


def compare(base: TokenLogprobs, model: TokenLogprobs, *, refusal_tokens: Sequence[int] = ()) -> TokenDrift:
    """Return the drift between two sets of log-probabilities along the same responses.

    Raises: UserError for different responses or vocabularies, NaN, or a row without any mass.
    """
    same_responses(base, model)
    first = list(base.offsets[:-1])
    return TokenDrift(
        kl=kl_rows(base.rows, model.rows),
        reverse=kl_rows(model.rows, base.rows),
        flipped=top1_flips(base.rows, model.rows),
        entropy_shift=entropy(model.rows) - entropy(base.rows),
        offsets=base.offsets,
        refusing=kl_of_refusing(base.rows[first], model.rows[first], refusal_tokens) if refusal_tokens else None,
    )


def drift_along(base: Read, model: Read, lengths: Sequence[int], *, vocab: int, refusal_tokens: Sequence[int] = ()) -> TokenDrift:
    """Return the drift along responses of the given lengths in tokens (at least 1), reading both models a few prompts at a time.

    Raises: UserError when there are no responses, and what `compare` raises.
    """
    if not lengths:
        raise UserError("Drift needs at least one response of the base, but got none; give benign prompts that it answers.")
    parts = [compare(base(rows), model(rows), refusal_tokens=refusal_tokens) for rows in _few(lengths, vocab)]
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    refusing = [p.refusing for p in parts if p.refusing is not None]
    return TokenDrift(
        kl=torch.cat([p.kl for p in parts]),
        reverse=torch.cat([p.reverse for p in parts]),
        flipped=torch.cat([p.flipped for p in parts]),
        entropy_shift=torch.cat([p.entropy_shift for p in parts]),
        offsets=tuple(ends),
        refusing=torch.cat(refusing) if refusing else None,
    )


def entropy(logprobs: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """Return −Σ p log p per row in nats, float64; tokens without mass count 0."""
    # Row by row: a float64 copy of all of them would be the largest tensor of an evaluation.
    rows = [row.double() - row.double().logsumexp(0) for row in logprobs]
    found = [-torch.where(row.isneginf(), 0.0, row.exp() * row).sum() for row in rows]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _few(lengths: Sequence[int], vocab: int) -> Iterator[range]:
    """Return the prompts in turn, as many at once as the limit on values allows and never none."""
    start, tokens = 0, 0
    for i, length in enumerate(lengths):
        if i > start and (tokens + length) * vocab > _MOST:
            yield range(start, i)
            start, tokens = i, 0
        tokens += length
    yield range(start, len(lengths))
