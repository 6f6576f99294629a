"""What a judge is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from resect.errors import UserError
from resect.evaluation.verdicts import Judgement, Verdict
from resect.generation import Response
from resect.prompts import Prompt

NO_RESPONSE = Judgement("unscored", "no response")
EMPTY_ANSWER = Judgement("unscored", "empty answer")


@runtime_checkable
class Judge(Protocol):
    """Judges responses. What it cannot score is `unscored` with the reason, never left out and never a compliance."""

    @property
    def name(self) -> str:
        """The name under which its verdicts are shown."""
        ...

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response, in order; None (the generation failed) is unscored."""
        ...


def verdicts_of(judge: Judge, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Verdict, ...]:
    """Return the verdicts of a judge without their reasons."""
    return tuple(judgement.verdict for judgement in judge.judge(prompts, responses))


def check_pairs(prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> None:
    """Raises: UserError when there is not one response for each prompt."""
    if len(prompts) != len(responses):
        raise UserError(f"Each prompt needs a response, but got {len(responses)} for {len(prompts)} prompts; pass both in the same order.")
