import pytest
import torch

from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, joined, make_plan, removal_plan
from resect.errors import UserError
from resect.models.embeddings import find_embeddings
from resect.models.forward import cache_argument
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def logits(model):
    return model.network(input_ids=IDS, use_cache=False).logits


@pytest.fixture(params=["qwen3", "olmo2", "mixtral"])
def model(tiny, request):
    return tiny(request.param)


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())


def test_nothing_is_left_behind_even_after_an_error(model):
    writers = find_writers(model)
    before, count = logits(model), hook_count(model)

    def fail():
        with applied(model, writers, make_plan(writers, VECTORS, torch.ones(2))):
            assert hook_count(model) == count + 4
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hook_count(model) == count == 0
    assert torch.equal(logits(model), before)


def test_empty_plan_is_exactly_the_base_model(model):
    with applied(model, find_writers(model), EditPlan(())):
        edited = logits(model)
    assert torch.equal(edited, logits(model))


def test_nested_plans_act_one_after_the_other(model):
    writers = find_writers(model)
    first, second = (make_plan(writers, VECTORS[:, i : i + 1], torch.full((2,), 0.8)) for i in (0, 1))
    both = make_plan(writers, VECTORS, torch.full((2,), 0.8), joint=False)
    with applied(model, writers, first), applied(model, writers, second):
        nested = logits(model)
    with applied(model, writers, both):
        at_once = logits(model)
    assert float((nested - at_once).norm() / at_once.norm()) < 1e-6


def test_removing_by_reflection_twice_gives_the_base_back(model):
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.full((2,), 2.0))
    before = logits(model)
    with applied(model, writers, plan):
        once = logits(model)
        with applied(model, writers, plan):
            twice = logits(model)
    assert float((once - before).norm() / before.norm()) > 1e-2
    assert float((twice - before).norm() / before.norm()) < 1e-5


def test_outputs_are_replaced_and_not_changed_in_place(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    seen = []
    handle = model.blocks[0].mlp.down_proj.register_forward_hook(lambda _m, _a, out: seen.append((out, out.clone())))
    with applied(model, writers, make_plan(writers, VECTORS, torch.ones(2))):
        logits(model)
    handle.remove()
    assert torch.equal(*seen[0])


def test_half_precision_keeps_its_dtype_and_the_accuracy_of_the_factors(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    model.network.bfloat16()
    got = []
    with applied(model, writers, make_plan(writers, VECTORS[:, :1], torch.ones(2))):
        handle = model.blocks[0].mlp.down_proj.register_forward_hook(lambda _m, _a, out: got.append(out))
        logits(model)
        handle.remove()
    unit = torch.nn.functional.normalize(VECTORS[0, 0], dim=0)
    assert got[0].dtype == torch.bfloat16
    assert float((got[0].float() @ unit).norm() / got[0].float().norm()) < 2e-3


def test_generation_with_a_cache_equals_a_full_pass(tiny):
    model = tiny("qwen3_5")
    writers = find_writers(model)
    with applied(model, writers, make_plan(writers, VECTORS, torch.ones(2))), torch.no_grad():
        full = logits(model)
        name = cache_argument(model.network)
        cache = model.network(input_ids=IDS[:, :8], use_cache=True)[name]
        rest = model.network(input_ids=IDS[:, 8:], use_cache=True, **{name: cache}).logits
    assert float((rest - full[:, 8:]).norm() / full[:, 8:].norm()) < 1e-5


def test_plan_for_another_model(tiny):
    writers = find_writers(tiny("qwen3"))
    plan = make_plan(writers, VECTORS, torch.ones(2))
    other = tiny("gpt2")
    with (
        pytest.raises(UserError, match=r"names 4 writers that this model lacks, the first is model\.layers\.0\.self_attn\.o_proj"),
        applied(other, find_writers(other), plan),
    ):
        pass
    with (
        pytest.raises(UserError, match="is for width 8, but this model has 32"),
        applied(other, writers, make_plan(writers, VECTORS[:, :, :8], torch.ones(2))),
    ):
        pass


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["column", "row"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "olmo2", "bloom"])
def test_norm_preserving_hooks_equal_norm_preserving_weights(tiny, name, kind):
    model = tiny(name)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.tensor([1.0, 0.7]), preserve=kind)
    with applied(model, writers, make_plan(writers, VECTORS, torch.tensor([1.0, 0.7]))):
        plain = logits(model)
    with applied(model, writers, plan):
        hooked = logits(model)
    bake(model, writers, plan)
    assert hook_count(model) == 0
    assert distance(logits(model), hooked) <= 1e-5
    assert distance(plain, hooked) > 1e-3


def test_norms_that_outputs_do_not_tell_are_refused_by_name(tiny):
    model = tiny("mixtral")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2), preserve="column")
    with (
        pytest.raises(UserError, match=r"keeps column norms, but writer model\.layers\.0\.mlp is no single"),
        applied(model, writers, plan),
    ):
        pass
    assert hook_count(model) == 0
    attention = EditPlan(plan.edits[:1])
    with pytest.raises(UserError, match="is edited already"), applied(model, writers, attention), applied(model, writers, attention):
        pass
    assert hook_count(model) == 0


def test_embeddings_and_blocks_in_one_plan(tiny):
    model = tiny("gpt2")
    writers, embeddings = find_writers(model), find_embeddings(model)
    first, second = make_plan(writers, VECTORS, torch.ones(2)), removal_plan(embeddings, VECTORS[0], 1.0)
    with applied(model, writers, first), applied(model, embeddings, second):
        nested = logits(model)
    with applied(model, (*writers, *embeddings), joined(first, second)):
        assert distance(logits(model), nested) <= 1e-6
