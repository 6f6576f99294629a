import pytest
import torch

from resect.errors import UserError
from resect.evaluation.drift import kl_rows
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


def replaced(value):
    """A hook that puts a value in the place of some logits: one token of one row, or a whole row."""

    def hook(_module, _args, logits):
        wrong = logits.clone()
        wrong[0, -1, ... if value == -torch.inf else 3] = value
        return wrong

    return hook


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_without_a_distribution_are_refused(make_model, value):
    model, rendered = make_model(), prompts([4, 5])
    with model.network.lm_head.register_forward_hook(replaced(value)), pytest.raises(UserError, match="logits of qwen3 hold NaN or inf"):
        next_token_logprobs(model, rendered)
    assert bool(next_token_logprobs(model, rendered).isfinite().all())


def test_a_masked_token_has_no_probability_and_everything_else_has(make_model):
    def mask(_module, _args, logits):
        return logits.index_fill(-1, torch.tensor([3]), -torch.inf)

    model, rendered = make_model(), prompts([4, 5])
    free = next_token_logprobs(model, rendered)
    with model.network.lm_head.register_forward_hook(mask):
        rows = next_token_logprobs(model, rendered)
    assert bool(rows[:, 3].isneginf().all())
    others = [i for i in range(rows.shape[1]) if i != 3]
    torch.testing.assert_close(rows[:, others], free[:, others].log_softmax(1))
    assert bool(kl_rows(free, rows).isinf().all()), "what the base can say and the model cannot"
    assert bool(kl_rows(rows, free).isfinite().all())


def test_a_row_longer_than_the_context_is_refused_and_one_that_just_fits_is_scored(make_model):
    model, rendered = make_model(), prompts([4, 5])
    model.network.config.max_position_embeddings = 7
    assert response_logprobs(model, rendered, [response(7, 8, 9)] * 2, k=3).counts == (3, 3)
    with pytest.raises(UserError, match="8 tokens are to be read at once, and qwen3 has positions for 7; give shorter prompts"):
        response_logprobs(model, rendered, [response(7, 8, 9, 10)] * 2, k=4)
