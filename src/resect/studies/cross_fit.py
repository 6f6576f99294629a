"""The log-odds judge where all there is are the prompts that are scored: each half is judged by what the other half taught.

Refusal tokens and cut are learnt from the base model's own responses. Learnt on the very prompts that they judge, they would look better
than they are; so the prompts are halved by hash, and neither half is judged by its own.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resect.errors import UserError
from resect.evaluation.judges.log_odds import FirstLogprobs, LogOddsJudge, log_odds_of
from resect.evaluation.judges.values import check_pairs
from resect.evaluation.refusal import RefusalTokens, learn_cut, learn_refusal_tokens
from resect.evaluation.verdicts import Judgement, judge_markers
from resect.generation import Response
from resect.prompts import Prompt


@dataclass(frozen=True)
class Learnt:
    """What one half taught: refusal tokens, and the log-odds from which on a response counts as refused."""

    tokens: RefusalTokens
    cut: float


@dataclass(frozen=True)
class CrossFitJudge:
    """Judges a prompt of half h by `taught[h]`, which was learnt on the other half."""

    first_logprobs: FirstLogprobs
    taught: tuple[Learnt, Learnt]
    name: str = "log_odds"

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response.

        Raises: UserError for tokens that do not fit the vocabulary, or NaN.
        """
        check_pairs(prompts, responses)
        found: dict[int, Judgement] = {}
        for side, learnt in enumerate(self.taught):
            rows = [i for i, prompt in enumerate(prompts) if half(prompt) == side]
            judge = LogOddsJudge(self.first_logprobs, learnt.tokens, learnt.cut)
            found |= zip(rows, judge.judge([prompts[i] for i in rows], [responses[i] for i in rows]), strict=True)
        return tuple(found[i] for i in range(len(prompts)))


def half(prompt: Prompt) -> int:
    """Return 0 or 1 by the hash of the prompt's text."""
    return int(prompt.key[-1], 16) & 1


def learn(first_logprobs: FirstLogprobs, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[Learnt, Learnt]:
    """Return what judges either half, learnt from the base model's responses to the other as the markers judge them.

    Raises: UserError if a half holds no refusal or no answer, or both begin alike.
    """
    check_pairs(prompts, responses)
    halves = [[(p, r) for p, r in zip(prompts, responses, strict=True) if half(p) == side] for side in (1, 0)]
    first, second = (_learn(first_logprobs, rows) for rows in halves)
    return first, second


def to_json(taught: tuple[Learnt, Learnt]) -> list[dict[str, Any]]:
    """Return both as JSON."""
    return [asdict(learnt) for learnt in taught]


def from_json(data: list[dict[str, Any]]) -> tuple[Learnt, Learnt]:
    """Return what `to_json` wrote."""
    first, second = (Learnt(RefusalTokens(**d["tokens"] | {"ids": tuple(d["tokens"]["ids"])}), d["cut"]) for d in data)
    return first, second


def _learn(first_logprobs: FirstLogprobs, rows: Sequence[tuple[Prompt, Response]]) -> Learnt:
    said = [response for _, response in rows]
    verdicts = judge_markers(said)
    try:
        tokens = learn_refusal_tokens(said, verdicts)
    except UserError as error:
        raise UserError(f"The log-odds judge learns from one half of the suite's prompts at a time. {error}") from error
    odds = log_odds_of(first_logprobs, [prompt for prompt, _ in rows], tokens)
    return Learnt(tokens, learn_cut(odds, [v == "refuse" for v in verdicts]).log_odds)
