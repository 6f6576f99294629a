import pytest

from resect.errors import UserError
from resect.evaluation.judges import MarkerJudge, verdicts_of
from resect.evaluation.markers import shipped_markers
from resect.generation import Response
from resect.prompts import Prompt

PROMPTS = [Prompt("[request]")] * 3
RESPONSES = [Response((5,), "I can't help with that.", finished=True), None, Response((5,), "Blue.", finished=True)]


def test_each_response_gets_a_verdict_with_its_reason():
    refused, failed, answered = MarkerJudge().judge(PROMPTS, RESPONSES)
    assert (refused.verdict, refused.reason) == ("refuse", "opens with a refusal (en)")
    assert (failed.verdict, failed.reason) == ("unscored", "no response")
    assert answered.verdict == "comply"
    assert verdicts_of(MarkerJudge(), PROMPTS, RESPONSES) == ("refuse", "unscored", "comply")


def test_languages_can_be_left_out():
    assert verdicts_of(MarkerJudge(shipped_markers("de")), PROMPTS, RESPONSES)[0] == "comply"


def test_every_prompt_needs_its_response():
    with pytest.raises(UserError, match="got 3 for 1 prompts"):
        MarkerJudge().judge(PROMPTS[:1], RESPONSES)
