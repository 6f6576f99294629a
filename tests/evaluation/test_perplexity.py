import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect.errors import UserError
from resect.evaluation.perplexity import answer_nll, response_nll, text_nll, turn_end, windows
from resect.generation import Response
from resect.models.chat import render


def reference(model, ids, start):
    """−Σ log p of the tokens from `start` on, one unpadded row, float64."""
    rows = model.network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(rows[t - 1, ids[t]]) for t in range(start, len(ids)))


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "qwen3_5"])
def test_answers_are_scored_with_their_end_and_without_their_prompt(make_model, architecture):
    model = make_model(architecture)
    rendered = render(model.tokenizer, ["w5 w6 w7", "w8", "w9 w10"])
    answers = ["w11 w12", "w13 w14 w15 w16 w17", "w18"]
    got = answer_nll(model, rendered, answers, batch_tokens=14)
    assert turn_end(model) == (1,)
    assert got.counts == (3, 6, 2)
    for i, (prompt, answer) in enumerate(zip(rendered, answers, strict=True)):
        ids = [*prompt.ids, *(int(w[1:]) for w in answer.split()), 1]
        assert float(got.sums[i]) == pytest.approx(reference(model, ids, len(prompt.ids)), rel=1e-5)
    measured = got.perplexity()
    assert measured.value == pytest.approx(math.exp(float(got.sums.sum()) / 11))
    assert measured.n == 3


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_score_every_token_but_the_first_once(n, context, data):
    stride = data.draw(st.integers(1, context - 1))
    ids = tuple(range(n))
    pieces = list(windows(ids, context=context, stride=stride))
    assert tuple(t for _, scored in pieces for t in scored) == ids[1:]
    for k, (read, scored) in enumerate(pieces):
        assert len(read) + len(scored) <= context
        assert read[-1] == scored[0] - 1
        assert k == 0 or len(read) >= context - stride


def test_short_text_is_its_plain_likelihood_and_bos_makes_the_first_token_count(make_model):
    text, ids = "w5 w9 w20 w31 w7", [5, 9, 20, 31, 7]
    bare, with_bos = make_model(), make_model(bos=True)
    got = text_nll(bare, [text])
    assert got.counts == (4,)
    assert float(got.sums[0]) == pytest.approx(reference(bare, ids, 1), rel=1e-5)
    got = text_nll(with_bos, [text])
    assert got.counts == (5,)
    assert float(got.sums[0]) == pytest.approx(reference(with_bos, [4, *ids], 1), rel=1e-5)


def test_strided_text_equals_its_windows(make_model):
    model = make_model()
    ids = torch.randint(5, 60, (23,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(f"w{i}" for i in ids), "w5 w6 w7"]
    got = text_nll(model, texts, context=8, stride=3, batch_tokens=20)
    assert got.counts == (22, 2)
    expected = sum(reference(model, [*read, *scored], len(read)) for read, scored in windows(tuple(ids), context=8, stride=3))
    assert float(got.sums[0]) == pytest.approx(expected, rel=1e-5)


def test_a_planted_favourite_lowers_the_perplexity(make_model):
    model, other = make_model(), make_model()
    with torch.no_grad():
        model.network.lm_head.weight.zero_()  # uniform
    assert text_nll(model, ["w5 w6 w7"]).perplexity().value == pytest.approx(60.0, rel=1e-5)
    assert text_nll(other, ["w5 w6 w7"]).perplexity().value != pytest.approx(60.0, rel=1e-2)


def test_bad_input_is_named(make_model):
    model = make_model()
    rendered = render(model.tokenizer, ["w5", "w6"])
    with pytest.raises(UserError, match="1 answers for 2 prompts"):
        answer_nll(model, rendered, ["w7"])
    with pytest.raises(UserError, match="Answer 1 is blank"):
        answer_nll(model, rendered, ["w7", "  "])
    with pytest.raises(UserError, match="stride must be at least 1 and below the context"):
        text_nll(model, ["w5 w6"], context=8, stride=8)
    with pytest.raises(UserError, match="at least one text"):
        text_nll(model, [])
    with pytest.raises(UserError, match="Text 1 has 1 tokens"):
        text_nll(model, ["w5 w6", "w5"])


def test_responses_are_scored_token_by_token_and_without_an_end_of_their_own(make_model):
    model = make_model()
    rendered = render(model.tokenizer, ["w5 w6 w7", "w8"])
    # The text of the first says something else than its tokens; the second is known as text only.
    said = [Response((11, 12), "w40", finished=False), Response((), "w13 w14 w15", finished=True)]
    got = response_nll(model, rendered, said)
    assert got.counts == (2, 3)
    for i, ids in enumerate([(11, 12), (13, 14, 15)]):
        assert float(got.sums[i]) == pytest.approx(reference(model, [*rendered[i].ids, *ids], len(rendered[i].ids)), rel=1e-5)
    with pytest.raises(UserError, match="Response 1 has no tokens"):
        response_nll(model, rendered, [said[0], Response((), "", finished=True)])
    with pytest.raises(UserError, match="got 1 for 2 prompts"):
        response_nll(model, rendered, said[:1])
