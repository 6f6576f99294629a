import pytest
import torch

from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, make_plan, removal_plan
from resect.edit.rows import applied_rows
from resect.errors import UserError
from resect.models.embeddings import find_embeddings
from resect.models.forward import cache_argument
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def logits(model):
    return model.network(input_ids=IDS, use_cache=False).logits


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())


def distance(a, b):
    return float((a - b).norm() / b.norm())


def four_plans(writers):
    """Two directions, one, none, and another strength on attention alone."""
    alone = {"attention": torch.tensor([0.0, 1.7]), "mlp": torch.zeros(2)}
    return (
        make_plan(writers, VECTORS, torch.ones(2)),
        make_plan(writers, VECTORS[:, :1], torch.tensor([2.0, 0.0])),
        EditPlan(()),
        make_plan(writers, VECTORS[:, 1:], alone, joint=False),
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "olmo2", "gpt_oss", "qwen3_5_moe"])
@torch.no_grad()
def test_each_row_computes_what_it_computes_alone(tiny, name, side):
    model = tiny(name)
    writers = find_writers(model)
    plans, lengths, width = four_plans(writers), (12, 7, 9, 4), 12
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    spans = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        ids[row, span], mask[row, span] = IDS[row % 2, : lengths[row]], 1
    with applied_rows(model, writers, plans):
        together = model.network(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1) * mask, use_cache=False).logits
    for row, (plan, span) in enumerate(zip(plans, spans, strict=True)):
        with applied(model, writers, plan):
            alone = model.network(input_ids=ids[row : row + 1, span], use_cache=False).logits[0]
        assert distance(together[row, span], alone) <= 1e-5


@torch.no_grad()
def test_rows_with_a_cache_equal_a_full_pass(tiny):
    model = tiny("qwen3_5")
    writers = find_writers(model)
    with applied_rows(model, writers, four_plans(writers)[:2]):
        full = logits(model)
        name = cache_argument(model.network)
        cache = model.network(input_ids=IDS[:, :8], use_cache=True)[name]
        rest = model.network(input_ids=IDS[:, 8:], use_cache=True, **{name: cache}).logits
    assert distance(rest, full[:, 8:]) < 1e-5


def test_rows_edit_embeddings_too(tiny):
    model = tiny("qwen3")
    embeddings = find_embeddings(model)
    plan = removal_plan(embeddings, VECTORS[0], 1.0)
    before = logits(model)
    with applied(model, embeddings, plan):
        edited = logits(model)
    with applied_rows(model, embeddings, [EditPlan(()), plan]):
        rows = logits(model)
    assert torch.equal(rows[0], before[0])
    assert distance(rows[1], edited[1]) <= 1e-6


def test_rows_that_cannot_be_told_apart_are_refused(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    with pytest.raises(UserError, match="edits for 3 rows, but the batch has 2"), applied_rows(model, writers, [plan] * 3):
        logits(model)
    kept = make_plan(writers, VECTORS, torch.ones(2), preserve="row")
    with pytest.raises(UserError, match="keeps row norms, which a batch"), applied_rows(model, writers, [plan, kept]):
        pass
    flat = model.blocks[0].mlp
    inner = flat.down_proj.forward
    flat.down_proj.forward = lambda x: inner(x).flatten(0, 1)
    with (
        pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj puts out shape \[24, 32\], without an axis for the rows"),
        applied_rows(model, writers, [plan] * 2),
    ):
        logits(model)
    assert hook_count(model) == 0


@torch.no_grad()
def test_rows_that_leave_or_move_keep_their_plans(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    plans = four_plans(writers)
    ids = IDS[[0, 1, 0, 1]]
    with applied_rows(model, writers, plans) as rows:
        whole = model.network(input_ids=ids, use_cache=False).logits
        for kept in ([0, 1, 2, 3], [3, 1], [2], [1, 1, 0]):
            rows.place(kept)
            assert distance(model.network(input_ids=ids[kept], use_cache=False).logits, whole[kept]) <= 1e-6
        with pytest.raises(UserError, match=r"edits 0 to 3; got \[4\]"):
            rows.place([4])
