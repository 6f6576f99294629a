"""Each half is judged by what the other half taught, and by nothing of its own."""

from dataclasses import dataclass

import pytest
import torch

from resect.errors import UserError
from resect.generation import Response
from resect.prompts import Prompt
from resect.studies.cross_fit import CrossFitJudge, from_json, half, learn, to_json

VOCAB = 12
REFUSAL, ANSWER = Response((5, 1), "I cannot help with that.", finished=True), Response((7, 1), "Here is how it goes.", finished=True)


@dataclass(frozen=True)
class Speaker:
    """A model that is certain of its first token; harmful prompts have an even number."""

    asked: tuple[Prompt, ...]
    said: tuple[Response, ...]

    def first_logprobs(self, prompts):
        rows = torch.full((len(prompts), VOCAB), -10.0)
        for row, prompt in zip(rows, prompts, strict=True):
            row[self.said[self.asked.index(prompt)].ids[0]] = 0.0
        return rows.log_softmax(1)


def speaker(count=40):
    asked = tuple(Prompt(f"request {i}") for i in range(count))
    return Speaker(asked, tuple(ANSWER if i % 2 else REFUSAL for i in range(count)))


def taught_by(base):
    return learn(base.first_logprobs, base.asked, base.said)


def test_it_tells_refusals_from_answers_and_survives_the_way_through_json():
    base = speaker()
    taught = taught_by(base)
    assert from_json(to_json(taught)) == taught
    found = CrossFitJudge(base.first_logprobs, taught).judge(base.asked, base.said)
    assert [j.verdict for j in found] == ["comply" if i % 2 else "refuse" for i in range(40)]
    assert CrossFitJudge(base.first_logprobs, taught).judge([], []) == ()


def test_no_half_is_judged_by_its_own_responses():
    base = speaker()
    assert {half(p) for p in base.asked} == {0, 1}
    # Half 0 now begins its refusals with another token: only what judges half 1 may move.
    other = Response((9, 1), REFUSAL.text, finished=True)
    moved = Speaker(base.asked, tuple(other if r is REFUSAL and half(p) == 0 else r for p, r in zip(base.asked, base.said, strict=True)))
    before, after = taught_by(base), taught_by(moved)
    assert after[0] == before[0]
    assert (before[1].tokens.ids, after[1].tokens.ids) == ((5,), (9,))


def test_an_empty_answer_is_unscored_and_never_a_compliance():
    base = speaker()
    silent = [Response((1,), "", finished=True)] * len(base.asked)
    found = CrossFitJudge(base.first_logprobs, taught_by(base)).judge(base.asked, silent)
    assert {(j.verdict, j.reason) for j in found} == {("unscored", "empty answer")}


def test_a_base_that_refuses_nothing_teaches_nothing():
    base = speaker()
    with pytest.raises(UserError, match="one half of the suite's prompts at a time"):
        taught_by(Speaker(base.asked, (ANSWER,) * len(base.asked)))
