import pytest
import torch

from resect.edit.bake import bake, baked
from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.errors import UserError
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(6))
STATE_BEARING = ("gemma3", "gpt2", "qwen2_moe")


@torch.no_grad()
def logits(model):
    return model.network(input_ids=IDS, use_cache=False).logits


def added(model):
    """What every block adds to the residual stream, [layer, token, d_model]."""
    deltas = []

    def hook(_module, args, kwargs, output):
        start = args[0] if args else kwargs["hidden_states"]
        deltas.append(((output[0] if isinstance(output, tuple) else output) - start).reshape(-1, 32))

    handles = [b.register_forward_hook(hook, with_kwargs=True) for b in model.blocks]
    logits(model)
    for handle in handles:
        handle.remove()
    return torch.stack(deltas)


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("gamma", "joint"), [(1.0, True), (2.0, True), (0.4, False)])
def test_bake_equals_hooks(tiny, family, gamma, joint):
    model = tiny(family)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.tensor([gamma, 0.9 * gamma]), joint=joint)
    before = logits(model)
    with applied(model, writers, plan):
        hooked = logits(model)
    bake(model, writers, plan)
    assert distance(hooked, before) > 1e-2
    assert distance(logits(model), hooked) <= 1e-5


def test_blocks_add_nothing_along_removed_directions(tiny, family):
    model = tiny(family)
    writers = find_writers(model)
    units = torch.nn.functional.normalize(VECTORS, dim=2)
    before = (added(model) @ units.mT).norm(dim=1)
    bake(model, writers, make_plan(writers, VECTORS, torch.ones(2)))
    after = (added(model) @ units.mT).norm(dim=1)
    assert float((after / before).max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STATE_BEARING)
def test_report_is_measured(tiny, name, dtype):
    model = tiny(name)
    model.network.to(dtype)
    writers = find_writers(model)
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    report = bake(model, writers, make_plan(writers, VECTORS, torch.tensor([0.75, 0])))
    assert {u.name for u in report.untouched} == {w.name for w in writers if w.layer == 1}
    assert {u.reason for u in report.untouched} == {"strength 0 at layer 1"}
    assert {c.name for c in report.changes} == {p.name for w in writers if w.layer == 0 for p in w.parameters}
    for change in report.changes:
        new, old = model.network.get_parameter(change.name), original[change.name]
        assert new.dtype == dtype
        assert change.change == pytest.approx(distance(new.float(), old.float()), rel=1e-3)
        slack = 1e-5 if dtype == torch.float32 else 0.05
        assert len(change.left) == 3
        # A bias may have next to nothing along a direction, and rounding to 8 bits is then a large share of it.
        if dtype == torch.float32 or not change.name.endswith("bias"):
            assert all(abs(left - 0.25) < slack for left in change.left)
    touched = {c.name for c in report.changes}
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items() if k not in touched and "lm_head" not in k)


@pytest.mark.parametrize("name", STATE_BEARING)
def test_baked_restores_every_bit_even_after_an_error(tiny, name):
    model = tiny(name)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    before = logits(model)

    def fail():
        with baked(model, writers, plan) as report:
            assert len(report.changes) == sum(len(w.parameters) for w in writers)
            assert distance(logits(model), before) > 1e-2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items())


def test_baking_twice_is_baking_once(tiny):
    model = tiny("qwen3_moe")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    bake(model, writers, plan)
    once = logits(model)
    assert max(c.change for c in bake(model, writers, plan).changes) < 1e-6
    assert distance(logits(model), once) < 1e-6


def test_shared_parameters_are_refused_before_anything_is_written(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    down = [b.mlp.down_proj for b in model.blocks]
    down[1].weight = down[0].weight
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj\.weight of writer .* is shared with model\.layers\.1\.mlp"):
        bake(model, writers, make_plan(writers, VECTORS, torch.ones(2)))
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items())


def test_parameters_without_data_are_refused(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    model.blocks[0].mlp.to("meta")
    with pytest.raises(UserError, match=r"mlp\.down_proj\.weight has no data"):
        bake(model, writers, make_plan(writers, VECTORS, torch.ones(2)))
