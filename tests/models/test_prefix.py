import pytest
import torch

from resect.edit import hooks
from resect.edit.plan import make_plan
from resect.evaluation.logprobs import next_token_logprobs
from resect.models.chat import render
from resect.models.prefix import Prefix
from resect.models.writers import find_writers
from resect.prompts import Prompt

PROMPTS = [Prompt(text) for text in ("one", "a longer prompt", "two words")]


@pytest.fixture(params=["qwen3", "gemma2", "qwen3_5", "gpt2"])
def model(request, tiny):
    return tiny(request.param)


def scored(model, prompts=PROMPTS):
    return next_token_logprobs(model, render(model.tokenizer, prompts), batch_tokens=40)


def test_an_edit_above_the_prefix_gives_the_same_numbers_to_the_bit(model):
    writers, prefix = find_writers(model), Prefix(model)
    plan = make_plan(writers, torch.randn(2, 1, model.d_model, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0]))
    with prefix.kept():
        base = scored(model)
    with hooks.applied(model, writers, plan):
        expected = scored(model)
        with prefix.below(1):
            assert torch.equal(scored(model), expected)
    assert not torch.equal(expected, base)
    assert torch.equal(scored(model), base)


def test_blocks_below_are_not_run_and_all_run_again_afterwards(model):
    ran, prefix = [], Prefix(model)
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
        own = block.forward
        block.forward = lambda *a, own=own, i=i, **k: (ran.append(f"computed {i}"), own(*a, **k))[1]
    own = model.blocks[0].forward
    with prefix.kept():
        scored(model)
    ran.clear()
    with prefix.below(1):
        scored(model)
        assert "computed 0" not in ran
        assert "computed 1" in ran
        # Another batch was never kept.
        scored(model, [Prompt("something else")])
        assert "computed 0" in ran
    assert model.blocks[0].forward is own


def test_nothing_is_handed_out_to_a_pass_with_a_cache(model):
    prefix = Prefix(model)
    (prompt,) = render(model.tokenizer, PROMPTS[:1])
    ids = torch.tensor([prompt.ids])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        with prefix.kept():
            model.network(**arguments, use_cache=False)
        expected = model.network(**arguments, use_cache=True)
        with prefix.below(1):
            found = model.network(**arguments, use_cache=True)
    assert torch.equal(found.logits, expected.logits)
