import pytest
import torch

from resect.edit.hooks import applied
from resect.edit.plan import first_layer, make_plan
from resect.generation import respond
from resect.models.chat import Rendered
from resect.models.forward import model_inputs
from resect.models.lower import LowerLayers
from resect.models.writers import find_writers

PROMPTS = tuple(Rendered(tuple(range(10 + 3 * n, 10 + 4 * n)), n - 1) for n in (12, 7, 9, 4))
IDS = torch.randint(6, 260, (3, 12), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(IDS)
MASK[1, :5] = 0
FAMILIES = ("llama", "gemma3", "gpt_oss", "qwen3_5", "qwen3_vl", "qwen3_moe")


@torch.no_grad()
def logits(model, ids=IDS, mask=MASK):
    inputs = model_inputs(model.network, input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1) * mask)
    return model.network(**inputs).logits


def upper_plans(model):
    """Edits of the last block only."""
    writers = find_writers(model)
    vectors = torch.randn(2, 1, model.d_model, generator=torch.Generator().manual_seed(6))
    return writers, [make_plan(writers, vectors, torch.tensor([0.0, gamma])) for gamma in (0.5, 1.0, 2.0)]


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_above_compute_what_they_compute_without_memory(tiny, name):
    model = tiny(name)
    writers, plans = upper_plans(model)
    lower, calls = LowerLayers(model), []
    assert {first_layer(writers, plan) for plan in plans} == {1}
    attention = next(module for module_name, module in model.blocks[0].named_modules() if module_name.endswith(("attn", "attention")))
    plain = []
    for plan in plans:
        with applied(model, writers, plan):
            plain.append((logits(model), respond(model, PROMPTS, max_new_tokens=6)))
    with lower.below(1):
        pass
    attention.register_forward_hook(lambda *_: calls.append(1))
    for plan, (expected, said) in zip(plans, plain, strict=True):
        with applied(model, writers, plan), lower.below(1):
            assert torch.equal(logits(model), expected)
            assert respond(model, PROMPTS, max_new_tokens=6) == said
    # Block 0 sees each batch of prompts once; decoded tokens are new every time.
    assert len(calls) == 2 + sum(max(len(r.ids) for r in said) - 1 for _, said in plain)
    assert "forward" not in vars(model.blocks[0])


def test_another_batch_or_mask_is_computed_anew(tiny):
    model = tiny("llama")
    lower = LowerLayers(model)
    with lower.below(1):
        logits(model)
        count = lower.reused
        other = IDS.clone()
        other[0, -1] += 1
        for ids, mask in ((other, MASK), (IDS, torch.ones_like(IDS)), (IDS[:2], MASK[:2])):
            found = logits(model, ids, mask)
            assert lower.reused == count
            with_memory = logits(model, ids, mask)
            assert torch.equal(found, with_memory)
            count = lower.reused
    assert lower.reused == 3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cached", [False, True])
def test_other_depths_share_what_is_known(tiny, name, cached):
    model = tiny(name)

    def act():
        return [r.ids for r in respond(model, PROMPTS, max_new_tokens=3)] if cached else logits(model).tolist()

    plain, lower, answered = act(), LowerLayers(model), []
    for depth in (1, 2):
        with lower.below(depth):  # whether that works is tried here, not counted below
            pass
    for depth in (1, 2, 1, 2, 0):
        before = lower.reused
        with lower.below(depth):
            assert act() == plain
        answered.append(lower.reused - before)
    assert answered == [0, 1, 1, 2, 0]  # blocks answered from memory, once in a pass over the prompts


def test_memory_is_bounded(tiny):
    model = tiny("llama")
    lower = LowerLayers(model, most_bytes=0)
    with lower.below(1):
        logits(model)  # the first batch is taken, the second is too much
        other = logits(model, IDS + 1)
        assert torch.equal(logits(model, IDS + 1), other)
        assert lower.reused == 0
        logits(model)
    assert lower.reused == 1


def test_a_network_whose_blocks_hand_on_more_than_their_output_is_left_alone(tiny):
    model = tiny("llama")
    first, second = model.blocks
    original = first.forward

    def leaking(*args, **kwargs):
        second.extra = 1.0
        return original(*args, **kwargs)

    taken = second.forward

    def reading(hidden, *args, **kwargs):
        return taken(hidden + second.__dict__.pop("extra"), *args, **kwargs)

    first.forward, second.forward = leaking, reading
    lower = LowerLayers(model)
    with lower.below(1):
        assert torch.equal(logits(model), logits(model))
    assert lower.reused == 0
    assert first.forward is leaking
