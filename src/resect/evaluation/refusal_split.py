"""How much of a drift is about refusing and how much about answering: the chain rule of KL at the first token.

Let R be the set of refusal tokens. Whether the first token y₁ lies in R is a function of the response y, so for any base p and model q

    KL(p(y)‖q(y)) = KL(p(R)‖q(R))  +  p(R) KL(p(y|R)‖q(y|R)) + (1 − p(R)) KL(p(y|R̄)‖q(y|R̄)),

the first term being the KL of one yes or no: "refuses or not". The rest is what changes in refusals and in answers. Along a response,
teacher-forced, the same holds token by token: the part about refusing is the binary KL at the first token, the answer part is all else.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation.drift import kl_rows


def kl_of_refusing(
    base: Float[Tensor, "prompt vocab"], model: Float[Tensor, "prompt vocab"], refusal_tokens: Sequence[int]
) -> Float[Tensor, " prompt"]:
    """Return per prompt KL of "begins with a refusal token or not", from log-probabilities of the first token, in nats and float64.

    It is never above KL of the first token (data processing), and 0 where no refusal token gains or loses. Infinite where one side is
    certain of what the other excludes.

    Raises: UserError for a token outside the vocabulary, NaN, or a row without any mass.
    """
    vocab = base.shape[1]
    if not refusal_tokens or not 0 <= min(refusal_tokens) <= max(refusal_tokens) < vocab:
        raise UserError(f"The refusal tokens {tuple(refusal_tokens)} do not fit a vocabulary of {vocab}; learn them from the same model.")
    inside = torch.zeros(vocab, dtype=torch.bool, device=base.device)
    inside[list(refusal_tokens)] = True
    return kl_rows(_refuses_or_not(base, inside), _refuses_or_not(model.to(base.device), inside))


def _refuses_or_not(rows: Tensor, inside: Tensor) -> Float[Tensor, "prompt 2"]:
    # Both by their own log-sums, never one as 1 − the other, so that both tails keep their precision.
    wide = rows.double()
    return torch.stack([wide[:, inside].logsumexp(dim=1), wide[:, ~inside].logsumexp(dim=1)], dim=1)
