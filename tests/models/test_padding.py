import logging

import pytest
import torch

from resect.activations import capture
from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.edit.rows import applied_rows
from resect.evaluation.logprobs import next_token_logprobs, response_logprobs
from resect.generation import Drafts, Response, respond
from resect.models import padding
from resect.models.chat import Rendered
from resect.models.padding import heeds_padding, model_batches
from resect.models.writers import find_writers

USES = ("left", "right", "both", "decoding", "prefix")
LENGTHS = (3, 17, 9, 9, 4, 26, 17)


def prompts(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(Rendered(tuple(torch.randint(8, 250, (n,), generator=generator).tolist()), n - 1) for n in lengths)


def heedless(model):
    """Let every attention see the padding, too: of the mask it keeps only that nobody sees what comes later."""

    def seeing(own):
        def forward(*args, attention_mask=None, **kwargs):
            if attention_mask is not None:
                attention_mask = torch.ones_like(attention_mask).tril(attention_mask.shape[-1] - attention_mask.shape[-2])
            return own(*args, attention_mask=attention_mask, **kwargs)

        return forward

    for block in model.blocks:
        block.self_attn.forward = seeing(block.self_attn.forward)
    return model


@pytest.fixture
def made(tiny):
    """A function: "heedless", or a family, to a new model."""
    return lambda name: heedless(tiny("llama")) if name == "heedless" else tiny(name)


@pytest.fixture
def asked(monkeypatch):
    """A list that grows by every time that padding is tried out."""
    seen, own = [], padding._error
    monkeypatch.setattr(padding, "_error", lambda model, use, longest: seen.append((use, longest)) or own(model, use, longest))
    return seen


@torch.no_grad()
def alone(model, row):
    got = []
    handles = [b.register_forward_hook(lambda _m, _a, o: got.append(o[0] if isinstance(o, tuple) else o)) for b in model.blocks]
    logits = model.network(input_ids=torch.tensor([row.ids])).logits[0]
    for handle in handles:
        handle.remove()
    return [h.reshape(len(row.ids), -1, model.d_model).mean(1) for h in got], logits.log_softmax(-1)


def plain(model, row, steps):
    ids = torch.tensor([row.ids])
    out = model.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps, pad_token_id=0)
    return tuple(out[0, len(row.ids) :].tolist())


@pytest.mark.parametrize(
    ("name", "use"),
    [(name, use) for name in ("llama", "gemma3", "gpt2", "gpt_oss", "qwen3_5_moe") for use in USES if use != "prefix"]
    + [("llama", "prefix"), ("gpt2", "prefix")],
)
def test_networks_that_heed_the_mask_are_told_in_every_dtype(tiny, name, use):
    """In half precision rounding sends tokens to other experts; blocks in float32 do not see that."""
    model = tiny(name)
    assert heeds_padding(model, use, tokens=40)
    again = tiny(name)
    again.network.to(torch.bfloat16)
    assert padding._error(again, use, 64) < padding.TOLERANCE / 10
    assert next(again.network.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "qwen3_5_moe"])
def test_windows_and_states_do_not_take_padding_after_the_first_tokens(tiny, name):
    """A window counts columns, and a state goes through what stands between."""
    model = tiny(name)
    assert heeds_padding(model, "left", tokens=40)
    assert not heeds_padding(model, "prefix", tokens=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["heedless", "deepseek_v4"])
def test_networks_that_see_the_padding_are_found_out(made, name, dtype):
    model, uses = made(name), ["left", "both", "decoding", "prefix"]
    model.network.to(dtype)
    assert [use for use in USES if not heeds_padding(model, use, tokens=32)] == uses
    assert min(padding._error(model, use, 32) for use in uses) > 100 * padding.TOLERANCE


@pytest.mark.parametrize("position", ["last", "mean", -3])
@pytest.mark.parametrize("name", ["heedless", "deepseek_v4"])
def test_capture_gives_the_rows_of_each_prompt_alone(made, name, position):
    model, rendered = made(name), prompts()
    streams = [alone(model, row)[0] for row in rendered]
    at = (lambda h: h.mean(0)) if position == "mean" else (lambda h: h[-1 if position == "last" else position])
    expected = torch.stack([torch.stack([at(h) for h in blocks]) for blocks in streams])
    got = capture(model, rendered, position=position).rows
    assert float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) < 1e-5


@pytest.mark.parametrize("name", ["heedless", "deepseek_v4"])
def test_scores_are_those_of_each_prompt_alone(made, name):
    model, rendered = made(name), prompts()
    said = [Response(row.ids[: 1 + i % 4], "", finished=True) for i, row in enumerate(reversed(rendered))]
    got = response_logprobs(model, rendered, said, k=4)
    for i, (row, response) in enumerate(zip(rendered, said, strict=True)):
        whole = alone(model, Rendered((*row.ids, *response.ids[:-1])))[1]
        torch.testing.assert_close(got.of(i), whole[len(row.ids) - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["heedless", "deepseek_v4"])
def test_responses_are_those_of_generate_with_drafts_and_without(made, name):
    model, rendered = made(name), prompts()
    # Rows end at different steps, so some leave their batch.
    model.network.generation_config.eos_token_id = [2, *range(7, 40)]
    expected = [plain(model, row, 14) for row in rendered]
    assert len({len(ids) for ids in expected}) > 2
    drafts = Drafts()
    assert [r.ids for r in respond(model, rendered, max_new_tokens=14, drafts=drafts)] == expected
    wrong = Drafts()
    for i, (row, ids) in enumerate(zip(rendered, expected, strict=True)):
        wrong.learn(row, (*ids[: i % 5], 41 + i, *ids[i % 5 :]))
    for known in (drafts, wrong):
        assert [r.ids for r in respond(model, rendered, max_new_tokens=14, drafts=known)] == expected


def test_guesses_of_different_lengths_do_not_share_a_batch_that_sees_padding(made, asked):
    """Prompts of one length need no padding, their guesses do."""
    model, rendered = made("heedless"), prompts([9] * 6)
    expected = [plain(model, row, 12) for row in rendered]
    drafts = Drafts()
    for i, (row, ids) in enumerate(zip(rendered, expected, strict=True)):
        drafts.learn(row, (*ids[: 2 + 2 * i], 41))
    assert [r.ids for r in respond(model, rendered, max_new_tokens=12)] == expected
    assert asked == []
    assert [r.ids for r in respond(model, rendered, max_new_tokens=12, drafts=drafts)] == expected
    assert asked == [("left", 64)]  # where no side is safe, decoding is not


def test_edits_of_rows_stand_aside_while_padding_is_tried_out(made):
    model, rendered = made("heedless"), prompts()
    writers = find_writers(model)
    vectors = torch.randn(2, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    plans = [make_plan(writers, vectors, torch.full((2,), strength)) for strength in (0.0, 1.0)]
    expected = []
    for plan in plans:
        with applied(model, writers, plan):
            expected += [alone(model, row)[1][-1] for row in rendered]
    with applied_rows(model, writers, [plan for plan in plans for _ in rendered]) as rows:
        scored = next_token_logprobs(model, rendered * 2, edits=rows)
        said = respond(model, rendered * 2, max_new_tokens=1, edits=rows)
    torch.testing.assert_close(scored, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert [r.ids[0] for r in said] == [int(row.argmax()) for row in expected]
    assert float((scored[: len(rendered)] - scored[len(rendered) :]).abs().max()) > 0.1


def test_padding_is_tried_out_only_where_there_would_be_some_and_once(made, asked, caplog):
    model = made("heedless")
    capture(model, prompts([9] * 4))
    capture(model, prompts(), batch_tokens=1)
    respond(model, prompts([9] * 4), max_new_tokens=3)
    next_token_logprobs(model, prompts([9] * 4))
    assert asked == []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            capture(model, prompts())
    assert asked == [("left", 64)]
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == ["llama computes other values for a prompt that is padded"]
    capture(model, prompts([80, 70]))
    assert asked == [("left", 64)]  # what fails on short prompts is not asked again of longer ones
    good = made("llama")
    capture(good, prompts([80, 70]))
    capture(good, prompts([100, 90]))
    capture(good, prompts([140, 120]))
    capture(good, prompts([100, 90]))
    assert asked == [("left", 64), ("left", 128), ("left", 256)]
    other = made("llama")
    capture(other, prompts([140, 120]))
    capture(other, prompts([80, 70]))  # what is right of long prompts is right of short ones
    assert asked[3:] == [("left", 256)]


def test_batches_are_padded_where_that_is_exact_and_of_one_length_where_not(made):
    good, bad = made("llama"), made("heedless")
    whole, parts = list(model_batches(good, prompts())), list(model_batches(bad, prompts()))
    assert [batch.rows for batch in whole] == [(5, 1, 6, 2, 3, 4, 0)]
    assert bool((whole[0].attention_mask == 0).any())
    assert [batch.rows for batch in parts] == [(5,), (1, 6), (2, 3), (4,), (0,)]
    assert all(bool((batch.attention_mask == 1).all()) for batch in parts)


def test_a_broken_network_is_left_to_the_passes_that_count_and_proves_nothing(made):
    model = made("heedless")
    weight = model.blocks[1].mlp.down_proj.weight
    before = weight[3].clone()
    weight[3] = float("nan")
    assert heeds_padding(model, "left", tokens=9)
    weight[3] = before
    assert not heeds_padding(model, "left", tokens=9)


def test_a_network_that_cannot_take_padding_gets_none(tiny, monkeypatch, caplog):
    model = tiny("llama")
    own = model.network.forward

    def forward(*args, attention_mask=None, **kwargs):
        if attention_mask is not None and bool((attention_mask == 0).any()):
            raise ValueError("no padding here")
        return own(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.network, "forward", forward)
    with caplog.at_level(logging.WARNING):
        assert capture(model, prompts()).rows.isfinite().all()
    assert "the padded pass fails" in caplog.text
