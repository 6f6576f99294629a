"""The default judge: markers at the opening of the answer, in ten languages, together with degeneracy and length."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from resect.evaluation import verdicts
from resect.evaluation.judges.values import check_pairs
from resect.evaluation.markers import Language, shipped_markers
from resect.evaluation.verdicts import Judgement
from resect.generation import Response
from resect.prompts import Prompt


@dataclass(frozen=True)
class MarkerJudge:
    """All six verdicts, by the rules of `judge_markers`. It never reads the prompt, so it cannot see an answer to something else."""

    languages: tuple[Language, ...] = field(default_factory=shipped_markers)
    name: str = "markers"

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response."""
        check_pairs(prompts, responses)
        return tuple(verdicts.judge(response, markers=self.languages) for response in responses)
