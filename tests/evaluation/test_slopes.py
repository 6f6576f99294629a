"""Slopes against finite differences of the hooked edit: an independent way to the same number."""

import pytest
import torch

from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, make_plan
from resect.errors import UserError
from resect.evaluation.logprobs import next_token_logprobs
from resect.evaluation.slopes import slopes
from resect.models.chat import render
from resect.models.writers import find_writers
from resect.prompts import Prompt

PROMPTS = [Prompt("say hi"), Prompt("count to ten, slowly and out loud"), Prompt("why?")]
STEP = 1e-3  # small, so that no expert is routed otherwise; rounding then shows in the third digit


def read(logprobs):
    """Two numbers: one log-probability, and one that mixes several."""
    return [logprobs[:, 7], (logprobs[:, 10:20] * torch.linspace(-1, 1, 10)).sum(1)]


def plans_of(model, writers):
    generator = torch.Generator().manual_seed(3)
    one = torch.randn(2, 1, model.d_model, generator=generator)
    two = torch.randn(2, 2, model.d_model, generator=generator)
    return [
        make_plan(writers, one, torch.tensor([1.0, 0.5])),
        make_plan(writers, two, torch.tensor([0.0, -1.5]), joint=False),
        EditPlan(()),
    ]


def scaled(plan, factor):
    return EditPlan(tuple(type(e)(e.writer, e.u, e.c, e.gamma * factor) for e in plan.edits))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi", "gpt2", "qwen3_moe", "qwen3_5"])
def test_slopes_are_the_derivatives_of_the_hooked_edit(tiny, name):
    model = tiny(name)
    writers, rendered = find_writers(model), render(model.tokenizer, PROMPTS)
    plans = plans_of(model, writers)
    found = slopes(model, writers, rendered, plans, read, batch_tokens=64)
    assert found.shape == (2, 3, 3)
    assert not found[:, :, 2].any()
    for k, plan in enumerate(plans[:2]):
        ends = []
        for sign in (1, -1):
            with applied(model, writers, scaled(plan, sign * STEP)):
                ends.append(torch.stack(read(next_token_logprobs(model, rendered))).double())
        measured = (ends[0] - ends[1]) / (2 * STEP)
        assert float((found[:, :, k] - measured).norm() / measured.norm()) < 1e-2


def test_padding_and_batches_change_nothing_and_no_hook_stays(tiny):
    model = tiny("qwen3")
    writers, rendered = find_writers(model), render(model.tokenizer, PROMPTS)
    plans = plans_of(model, writers)
    together = slopes(model, writers, rendered, plans, read, batch_tokens=4096)
    alone = torch.cat([slopes(model, writers, [r], plans, read) for r in rendered], dim=1)
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in model.network.modules())
    assert not any(p.requires_grad for p in model.network.parameters())


def test_a_plan_of_another_model_is_refused(tiny):
    model, other = tiny("qwen3"), tiny("gpt2")
    plan = make_plan(find_writers(other), torch.ones(2, 1, 32), torch.ones(2))
    with pytest.raises(UserError, match="that this model lacks"):
        slopes(model, find_writers(model), render(model.tokenizer, PROMPTS), [plan], read)
