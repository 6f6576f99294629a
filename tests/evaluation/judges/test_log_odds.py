import pytest
import torch

from resect.errors import UserError
from resect.evaluation.judges import LogOddsJudge
from resect.evaluation.refusal import RefusalTokens
from resect.generation import Response
from resect.prompts import Prompt

TOKENS = RefusalTokens((1,), 1.0, 0.0)
PROMPTS = [Prompt("a"), Prompt("b"), Prompt("c")]
SAID = Response((0,), "x", finished=True)


def first(prompts):
    return torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 2.0], [0.0, 2.0, 0.0]])[: len(prompts)].log_softmax(1)


def test_the_cut_decides_and_the_reason_gives_the_odds():
    got = LogOddsJudge(first, TOKENS).judge(PROMPTS, [SAID, SAID, None])
    assert [j.verdict for j in got] == ["refuse", "comply", "unscored"]
    assert got[0].reason == "log-odds of a refusal token 1.31, cut 0.00"  # 2 − log 2
    assert [j.verdict for j in LogOddsJudge(first, TOKENS, cut=1.4).judge(PROMPTS[:1], [SAID])] == ["comply"]


def test_nothing_to_judge_and_tokens_of_another_model():
    assert LogOddsJudge(first, TOKENS).judge([], []) == ()
    with pytest.raises(UserError, match="vocabulary of 3"):
        LogOddsJudge(first, RefusalTokens((9,), 1.0, 0.0)).judge(PROMPTS[:1], [SAID])


def test_of_an_answer_that_holds_nothing_it_says_nothing():
    got = LogOddsJudge(first, TOKENS).judge(PROMPTS[:2], [Response((0,), " ", finished=True), SAID])
    assert (got[0].verdict, got[0].reason, got[1].verdict) == ("unscored", "empty answer", "comply")


def test_thoughts_that_never_came_to_an_answer_are_no_compliance_and_other_thoughts_are_in_the_reason():
    thinking, thought = (Response((0,), "<think> hm", finished=False, answer=answer) for answer in ("", "blue"))
    got = LogOddsJudge(first, TOKENS, cut=1.4).judge(PROMPTS[:2], [thinking, thought])
    assert (got[0].verdict, got[0].reason) == ("unscored", "empty answer")
    assert (got[1].verdict, got[1].reason) == ("comply", "log-odds of a refusal token -2.69, cut 1.40, read where the thoughts begin")


def test_many_prompts_are_read_a_few_at_a_time_with_the_same_result():
    seen = []

    def many(prompts):
        seen.append(len(prompts))
        return torch.tensor([[0.0, 2.0 if int(p.text) % 3 else -2.0, 0.0] for p in prompts]).log_softmax(1)

    prompts = [Prompt(str(i)) for i in range(70)]
    got = LogOddsJudge(many, TOKENS).judge(prompts, [SAID] * 70)
    assert [j.verdict for j in got] == ["refuse" if i % 3 else "comply" for i in range(70)]
    assert seen == [32, 32, 6]
