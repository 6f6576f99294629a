"""Where two decodings of a prompt part, and whether that is a tie: two tokens whose logits are equal up to rounding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from resect.models.chat import Rendered
from resect.models.load import ChatModel

Ids = tuple[int, ...]

RELATIVE = 1e-4
"""Two logits closer than this share of the largest absolute logit are a tie in float32: rounding differs by as much with the batch."""


@dataclass(frozen=True)
class Parting:
    """The first token at which two responses to a prompt differ, with the logits of both tokens there and their gap.

    `limit` is the gap up to which the difference counts as a tie.
    """

    prompt: int
    position: int
    tokens: tuple[int, int]
    logits: tuple[float, float]
    limit: float

    @property
    def gap(self) -> float:
        """Distance of the two logits."""
        return abs(self.logits[0] - self.logits[1])

    @property
    def tie(self) -> bool:
        """Whether the two logits are equal within float error."""
        return self.gap <= self.limit


@torch.no_grad()
def partings(model: ChatModel, prompts: Sequence[Rendered], a: Iterable[Ids], b: Iterable[Ids]) -> tuple[Parting, ...]:
    """Return where the responses `a` and `b` to the same prompts part, by a plain pass over the prompt and what they share.

    Call it with the edit on that the responses were decoded under. A response that is the beginning of the other parts at its end, where
    the token that it lacks is given twice, which is no tie.
    """
    found = []
    for number, (prompt, left, right) in enumerate(zip(prompts, a, b, strict=True)):
        if left == right:
            continue
        shared = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))
        longer = left if len(left) > shared else right
        tokens = (left[shared] if shared < len(left) else longer[shared], right[shared] if shared < len(right) else longer[shared])
        ids = torch.tensor([[*prompt.ids, *longer[:shared]]], device=model.device)
        logits = model.network(input_ids=ids, use_cache=False).logits[0, -1].float()
        limit = RELATIVE * float(logits.abs().max()) if tokens[0] != tokens[1] else -1.0
        found.append(Parting(number, shared, tokens, (float(logits[tokens[0]]), float(logits[tokens[1]])), limit))
    return tuple(found)
