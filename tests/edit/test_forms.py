"""One plan, every form: hooks, one plan a row, baked weights and a PEFT adapter compute the same logits, on every architecture."""

import pytest
import torch
from accelerate import dispatch_model

from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, make_plan
from resect.edit.rows import applied_rows
from resect.errors import UserError
from resect.models.load import wrap
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(6))
TOLERANCE = 1e-5


@torch.no_grad()
def logits(model):
    return model.network(input_ids=IDS, use_cache=False).logits


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_all_forms_compute_the_same_logits_and_touch_nothing_else(tiny, family, tmp_path):
    model, adapted = tiny(family), tiny(family)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.tensor([1.0, 0.6]))
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    before = logits(model)
    with applied(model, writers, plan):
        hooked = logits(model)
    with applied_rows(model, writers, [plan, EditPlan(())]):
        rows = logits(model)
    save_adapter(model, make_adapter(model, writers, plan), tmp_path / "adapter", card="")
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items())
    adapter = logits(with_adapter(adapted, tmp_path / "adapter"))
    report = bake(model, writers, plan)
    assert distance(hooked, before) > 1e-2
    assert distance(rows[0], hooked[0]) <= TOLERANCE
    # Experts compute the tokens of both rows at once, and the last bits of a product depend on how many there are.
    experts = any(p.layout.startswith("expert") for w in writers for p in w.parameters)
    assert distance(rows[1], before[1]) <= (1e-6 if experts else 0)
    assert distance(adapter, hooked) <= TOLERANCE
    assert distance(logits(model), hooked) <= TOLERANCE
    touched = {change.name for change in report.changes}
    assert touched == {p.name for w in writers for p in w.parameters}
    assert {k for k, v in model.network.state_dict().items() if not torch.equal(v, original[k])} == touched


def test_twice_is_once_at_full_strength(tiny, family):
    model = tiny(family)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    with applied(model, writers, plan):
        once = logits(model)
    with applied(model, writers, plan), applied(model, writers, plan):
        assert distance(logits(model), once) <= TOLERANCE
    bake(model, writers, plan)
    bake(model, writers, plan)
    assert distance(logits(model), once) <= TOLERANCE


def spread(network, last, folder):
    """Give accelerate the network: every part on the CPU, moved there by its hooks, but the last block and the norm after it on `last`."""
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.1": last, "model.norm": last}
    return dispatch_model(network, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mixtral"])
def test_a_network_spread_over_devices_is_found_hooked_and_baked_as_a_whole_one(tiny, name, tmp_path):
    whole, model = tiny(name), tiny(name)
    model = wrap(spread(model.network, "cpu", tmp_path), model.tokenizer, name=name)
    writers, found = find_writers(whole), find_writers(model)
    assert [(w.name, w.parameters, w.coefficient) for w in found] == [(w.name, w.parameters, w.coefficient) for w in writers]
    plan = make_plan(found, VECTORS, torch.ones(2))
    bake(whole, writers, plan)
    with applied(model, found, plan):
        assert distance(logits(model), logits(whole)) <= TOLERANCE
    bake(model, found, plan)
    assert distance(logits(model), logits(whole)) <= TOLERANCE


def test_hooks_reach_weights_that_are_offloaded_and_all_that_reads_weights_is_refused(tiny, tmp_path):
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    keeping = make_plan(writers, VECTORS, torch.ones(2), preserve="row")
    with applied(model, writers, plan):
        wanted = logits(model)
    spread(model.network, "disk", tmp_path)
    assert model.blocks[1].mlp.down_proj.weight.is_meta
    with applied(model, writers, plan):
        assert distance(logits(model), wanted) <= TOLERANCE
    refused = {
        "wrap": lambda: wrap(model.network, model.tokenizer, name="again"),
        "find": lambda: find_writers(model),
        "bake": lambda: bake(model, writers, plan),
        "adapter": lambda: make_adapter(model, writers, plan),
        "norms": lambda: applied(model, writers, keeping).__enter__(),
    }
    for action in refused.values():
        with pytest.raises(UserError, match=r"Parameter model.layers.1.\S+ has no data .* load the whole model, .*resect apply"):
            action()
