"""The judge of broken text: repetition, entropy, and how unlikely the base model finds what was said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resect.errors import UserError
from resect.evaluation.degenerate import degeneracy
from resect.evaluation.judges.values import NO_RESPONSE, check_pairs
from resect.evaluation.markers import units
from resect.evaluation.perplexity import response_nll
from resect.evaluation.verdicts import Judgement
from resect.generation import Response
from resect.models.chat import render
from resect.models.load import ChatModel
from resect.prompts import Prompt

_SOUND = Judgement("unscored", "not degenerate, and this judge tells nothing else")


@dataclass(frozen=True)
class DegeneracyJudge:
    """Degenerate or unscored: whether a sound text refuses is for other judges to say.

    With a `base` model, text to which it gives a perplexity above `limit` (per token, teacher-forced after the prompt) is degenerate
    too: word salad has neither loops nor low entropy. Take the limit from the base's own answers; there is no value that fits all models.
    """

    base: ChatModel | None = None
    limit: float | None = None
    name: str = "degeneracy"

    def __post_init__(self) -> None:
        if (self.base is None) != (self.limit is None) or (self.limit is not None and not 1 < self.limit < math.inf):
            raise UserError(
                f"A degeneracy judge takes a base model and a perplexity limit above 1, or neither, but got limit {self.limit} "
                f"{'without' if self.base is None else 'with'} a model; give ten times the perplexity of the base's own answers, say."
            )

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response."""
        check_pairs(prompts, responses)
        found = [NO_RESPONSE if response is None else _repetition(response) for response in responses]
        sound = [i for i, judgement in enumerate(found) if judgement is _SOUND]
        if self.base is None or self.limit is None or not sound:
            return tuple(found)
        rendered = render(self.base.tokenizer, [prompts[i] for i in sound])
        spoken = [response for i in sound if (response := responses[i]) is not None]
        for i, mean in zip(sound, response_nll(self.base, rendered, spoken).means.tolist(), strict=True):
            if mean > math.log(self.limit):
                found[i] = Judgement("degenerate", f"perplexity {math.exp(min(mean, 700)):.0f} under the base model, limit {self.limit:g}")
        return tuple(found)


def _repetition(response: Response) -> Judgement:
    why = degeneracy(units(response.answer_text))
    return _SOUND if why is None else Judgement("degenerate", why)
