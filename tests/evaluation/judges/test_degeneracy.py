import math

import pytest

from resect.errors import UserError
from resect.evaluation.judges import DegeneracyJudge
from resect.evaluation.perplexity import response_nll
from resect.generation import Response, respond
from resect.models.chat import render
from resect.prompts import Prompt

PROMPTS = [Prompt("w7 w8 w9"), Prompt("w10 w11")]


def said(text, *, answer=None):
    return Response((5,), text, finished=True, answer=answer)


def test_broken_text_is_degenerate_and_sound_text_is_left_to_others():
    responses = [said(""), said("?!"), said("go " * 20), said("ha" * 30), said("Bees make honey."), said("x", answer=""), None]
    got = DegeneracyJudge().judge([Prompt("a")] * 7, responses)
    assert [j.verdict for j in got] == ["degenerate"] * 4 + ["unscored", "degenerate", "unscored"]
    reasons = ["empty", "punctuation only", "one word again and again", "a word that loops"]
    assert [j.reason for j in got[:4]] == reasons
    assert got[-1].reason == "no response"


def test_what_the_base_finds_unlikely_is_degenerate(make_model):
    base = make_model()
    rendered = render(base.tokenizer, PROMPTS)
    likely = respond(base, rendered, max_new_tokens=6)[0]
    ids = tuple(i for i in (31, 22, 17, 44, 9, 53) if i not in likely.ids)
    unlikely = Response(ids, " ".join(f"w{i}" for i in ids), finished=False)
    own, other = (response_nll(base, rendered[:1], [r]).means.item() for r in (likely, unlikely))
    assert own < other
    limit = math.exp((own + other) / 2)
    got = DegeneracyJudge(base, limit).judge([PROMPTS[0]] * 2, [likely, unlikely])
    assert [j.verdict for j in got] == ["unscored", "degenerate"]
    assert got[1].reason == f"perplexity {math.exp(other):.0f} under the base model, limit {limit:g}"
    assert all(j.verdict == "unscored" for j in DegeneracyJudge(base, limit * 1e6).judge([PROMPTS[0]] * 2, [likely, unlikely]))


@pytest.mark.parametrize("limit", [None, 1.0, math.inf, math.nan])
def test_a_model_needs_a_limit_that_means_something(make_model, limit):
    with pytest.raises(UserError, match="perplexity limit above 1"):
        DegeneracyJudge(make_model(), limit)
    with pytest.raises(UserError, match="without a model"):
        DegeneracyJudge(None, 5.0)
