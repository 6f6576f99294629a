"""Recovery, where a helpful-only twin of the model exists: does the edited model give the answer that the twin gives?

A low refusal rate says only that refusals are gone. Recovery says what came in their place.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation.drift import kl_tokens
from resect.evaluation.logprobs import TokenLogprobs
from resect.generation import Response


def agreement(responses: Sequence[Response], twin: Sequence[Response]) -> tuple[bool, ...]:
    """Return per prompt whether the response is the twin's, token for token, the end-of-turn token included.

    Raises: UserError when the counts differ.
    """
    return tuple(a.ids == b.ids for a, b in _pairs(responses, twin))


def kl_to_twin(twin: TokenLogprobs, edited: TokenLogprobs) -> Float[Tensor, " prompt"]:
    """Return KL(twin‖edited) teacher-forced along the twin's responses, mean over each prompt's tokens, in nats per token."""
    return kl_tokens(twin, edited)


def _pairs(responses: Sequence[Response], twin: Sequence[Response]) -> list[tuple[Response, Response]]:
    if len(responses) != len(twin):
        raise UserError(f"Recovery compares the same prompts, but got {len(responses)} responses and {len(twin)} of the twin.")
    return list(zip(responses, twin, strict=True))
