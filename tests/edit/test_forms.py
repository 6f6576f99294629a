"""One plan, every form: hooks, one plan a row, baked weights and a PEFT adapter compute the same logits, on every architecture."""

import pytest
import torch

from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, make_plan
from resect.edit.rows import applied_rows
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
    assert torch.equal(rows[1], before[1])
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
