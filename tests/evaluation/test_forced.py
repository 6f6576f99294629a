import pytest
import torch

from resect.errors import UserError
from resect.evaluation.forced import score
from resect.evaluation.logprobs import next_token_logprobs, response_logprobs
from resect.generation import Response, respond
from resect.models.chat import Rendered


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(Rendered(torch.randint(5, 60, (n,), generator=generator).tolist(), n - 1) for n in lengths)


def reference(model, ids):
    """Log-probabilities of one row alone, without padding, cache or cutting, normalised in float64."""
    return model.network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def response(*ids):
    return Response(ids, "", finished=True)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "qwen3_5"])
def test_rows_equal_those_of_each_prompt_alone(make_model, architecture):
    model, rendered = make_model(architecture), prompts([3, 9, 5, 1])
    answers = [response(7, 8, 9, 10, 11, 12), response(6, 1), response(13, 14, 15), response(9)]
    for batch_tokens in (8192, 12):
        first = next_token_logprobs(model, rendered, batch_tokens=batch_tokens)
        got = response_logprobs(model, rendered, answers, k=4, batch_tokens=batch_tokens)
        assert got.counts == (4, 2, 3, 1)
        for i, (prompt, answer) in enumerate(zip(rendered, answers, strict=True)):
            whole = reference(model, [*prompt.ids, *answer.ids])
            start = len(prompt.ids) - 1
            torch.testing.assert_close(got.of(i).double(), whole[start : start + got.counts[i]], atol=3e-5, rtol=1e-5)
            torch.testing.assert_close(first[i], got.of(i)[0], atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(first.exp().sum(1), torch.ones(4))


def test_greedy_tokens_are_the_likeliest_of_their_rows(make_model):
    """Generation and scoring see the same distributions."""
    model, rendered = make_model(), prompts([4, 6, 8])
    greedy = respond(model, rendered, max_new_tokens=7)
    scored = response_logprobs(model, rendered, greedy, k=7)
    for i, row in enumerate(greedy):
        assert tuple(scored.of(i).argmax(1).tolist()) == row.ids


def test_generation_settings_do_not_enter(make_model):
    model, rendered = make_model(), prompts([4])
    before = next_token_logprobs(model, rendered)
    model.network.generation_config.temperature = 0.1
    model.network.generation_config.suppress_tokens = [5, 6]
    assert torch.equal(next_token_logprobs(model, rendered), before)
    assert bool(before.isfinite().all())


def test_a_network_without_logits_to_keep_gives_the_same(make_model, monkeypatch):
    model, rendered = make_model(), prompts([4, 7])
    before = response_logprobs(model, rendered, [response(7, 8), response(9)], k=2)
    monkeypatch.setattr("resect.evaluation.forced.accepts", lambda _model, name: name == "attention_mask")
    rendered_alike = response_logprobs(model, rendered, [response(7, 8), response(9)], k=2, batch_tokens=1)
    torch.testing.assert_close(rendered_alike.rows, before.rows, atol=3e-5, rtol=1e-5)


def test_logit_budget_splits_batches(make_model, monkeypatch):
    model, rendered = make_model(), prompts([4] * 6)
    monkeypatch.setattr("resect.evaluation.forced._MAX_LOGITS", 2 * 3 * 60)
    sizes = [len(b.rows) for b in score(model, [r.ids for r in rendered], [(7, 8, 9)] * 6)]
    assert sizes == [2, 2, 2]


def test_bad_input_is_named(make_model):
    model, rendered = make_model(), prompts([4, 5])
    one = response(7)
    with pytest.raises(UserError, match="k must be at least 1"):
        response_logprobs(model, rendered, [one, one], k=0)
    with pytest.raises(UserError, match="Response 1 has no tokens"):
        response_logprobs(model, rendered, [one, response()], k=3)
    with pytest.raises(UserError, match="one continuation per prompt"):
        response_logprobs(model, rendered, [one], k=3)
    with pytest.raises(UserError, match="at least one prompt"):
        next_token_logprobs(model, ())
    with pytest.raises(UserError, match="Prompt 1 has no tokens"):
        next_token_logprobs(model, (rendered[0], Rendered((), 0)))
    with torch.no_grad():
        model.network.lm_head.weight[3] = float("nan")
    with pytest.raises(UserError, match="logits of qwen3 hold NaN"):
        next_token_logprobs(model, rendered)
