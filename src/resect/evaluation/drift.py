"""How far an edit moves the next-token distributions: KL(base‖edited) in nats, top-1 flips, quantiles, by topic.

KL at the first token and KL teacher-forced over a response are different quantities; their names keep them apart. The distributions are
renormalised in float64, so KL is non-negative up to 1e-12 whatever the precision of the log-probabilities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation.logprobs import TokenLogprobs

_NOISE = 1e-12
_CHUNK = 1 << 24  # float64 values held at once per operand: 128 MB


@dataclass(frozen=True)
class Quantiles:
    """Mean and tail of a per-prompt quantity over n prompts."""

    mean: float
    median: float
    p90: float
    p99: float
    max: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Return the fields as a JSON object."""
        return asdict(self)


def kl_rows(base: Float[Tensor, "token vocab"], edited: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    """Return Σ p (log p − log q) per row in nats, float64: p = softmax(base), q = softmax(edited).

    Terms with p = 0 are 0, also where q = 0; p > 0 with q = 0 gives inf. Never NaN.

    Raises: UserError for different shapes, NaN, or a row without any mass.
    """
    _check_pair(base, edited)
    parts = [_kl(p.double(), q.double()) for p, q in _chunks(base, edited)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def kl_first_token(base: Float[Tensor, "prompt vocab"], edited: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """Return KL(base‖edited) of the first response token per prompt, in nats (Arditi et al. 2024; full vocabulary)."""
    return kl_rows(base, edited)


def kl_tokens(base: TokenLogprobs, edited: TokenLogprobs) -> Float[Tensor, " prompt"]:
    """Return per prompt the mean over its teacher-forced tokens of KL(base‖edited), in nats per token.

    Raises: UserError when the two were not scored along the same responses.
    """
    per_token = _per_token(base, edited)
    return torch.stack([per_token[a:b].mean() for a, b in pairwise(base.offsets)])


def kl_tokens_of_top(base: TokenLogprobs, edited: TokenLogprobs, *, k: int) -> Float[Tensor, " prompt"]:
    """Return `kl_tokens` of both distributions restricted to the base's k likeliest tokens and renormalised, in nats per token.

    What of the drift a protocol sees that keeps top-k log-probabilities only (arXiv 2603.22061, k = 100); mass that leaves them is unseen.

    Raises: UserError when the two were not scored along the same responses.
    """
    top = base.rows.topk(min(k, base.rows.shape[1]), dim=1).indices
    return kl_tokens(*(TokenLogprobs(side.rows.gather(1, top), side.offsets) for side in (base, edited)))


def kl_by_position(base: TokenLogprobs, edited: TokenLogprobs) -> tuple[Quantiles, ...]:
    """Return, for token 1, 2, … of the responses, KL(base‖edited) over the prompts whose response is that long, in nats."""
    per_token, counts = _per_token(base, edited), base.counts
    starts = [(offset, count) for offset, count in zip(base.offsets, counts, strict=False)]
    return tuple(quantiles(per_token[[start + j for start, count in starts if count > j]]) for j in range(max(counts)))


def top1_flips(base: Float[Tensor, "prompt vocab"], edited: Float[Tensor, "prompt vocab"]) -> Bool[Tensor, " prompt"]:
    """Return per row whether the likeliest token changed."""
    _check_pair(base, edited)
    return base.argmax(dim=1) != edited.argmax(dim=1)


def quantiles(values: Float[Tensor, " prompt"]) -> Quantiles:
    """Return mean, median, 90 % and 99 % quantile (linear interpolation) and maximum.

    Raises: UserError when there are no values or one is not finite.
    """
    data = values.detach().cpu().double()
    if not len(data) or not bool(data.isfinite().all()):
        raise UserError(f"Quantiles need at least one value and finite ones, but got {len(data)}, {int((~data.isfinite()).sum())} not.")
    middle, p90, p99 = (float(data.quantile(q)) for q in (0.5, 0.9, 0.99))
    return Quantiles(float(data.mean()), middle, p90, p99, float(data.max()), len(data))


def by_category(values: Float[Tensor, " prompt"], categories: Sequence[str | None]) -> dict[str, Quantiles]:
    """Return the quantiles of each category, sorted by name; prompts without one are under "uncategorised".

    Raises: UserError when the counts differ.
    """
    if len(values) != len(categories):
        raise UserError(f"Each value needs a category, but got {len(categories)} categories for {len(values)} values.")
    groups: dict[str, list[int]] = {}
    for i, category in enumerate(categories):
        groups.setdefault(category or "uncategorised", []).append(i)
    return {name: quantiles(values[groups[name]]) for name in sorted(groups)}


def _per_token(base: TokenLogprobs, edited: TokenLogprobs) -> Float[Tensor, " token"]:
    if base.offsets != edited.offsets:
        raise UserError("The two sets of log-probabilities were scored along different responses; score both along the base's own.")
    return kl_rows(base.rows, edited.rows)


def _kl(p: Float[Tensor, "token vocab"], q: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    p, q = p - p.logsumexp(dim=1, keepdim=True), q - q.logsumexp(dim=1, keepdim=True)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    result = terms.sum(dim=1)
    if bool(result.isnan().any()) or bool((result < -_NOISE).any()):
        raise UserError("A KL divergence came out as NaN or negative: a distribution holds NaN or no mass; check the weights.")
    return result.clamp(min=0.0)


def _chunks(base: Tensor, edited: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK // max(1, base.shape[1]))
    return zip(base.split(size), edited.to(base.device).split(size), strict=True)


def _check_pair(base: Tensor, edited: Tensor) -> None:
    if base.shape != edited.shape:
        raise UserError(f"Drift compares like with like, but got log-probabilities of shape {tuple(base.shape)} and {tuple(edited.shape)}.")
