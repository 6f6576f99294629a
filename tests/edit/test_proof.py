import json

import pytest
import torch

from resect import artifacts
from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, joined, make_plan, removal_plan
from resect.edit.proof import observe, prove
from resect.errors import UserError
from resect.models.embeddings import find_embeddings
from resect.models.writers import find_writers

VECTORS = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(6))
STRENGTHS = torch.tensor([1.0, 0.6])


def hooked(model, writers, plan):
    before = observe(model, writers, plan)
    with applied(model, writers, plan):
        return prove(model, writers, plan, before=before)


def baked(model, writers, plan):
    before = observe(model, writers, plan)
    bake(model, writers, plan)
    return prove(model, writers, plan, before=before)


def test_every_writer_is_measured_beside_what_was_asked(tiny, family):
    model = tiny(family)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, STRENGTHS)
    for proof in (hooked(model, writers, plan), baked(model, writers, plan)):
        assert not proof.faults
        assert [w.writer for w in proof.writers] == [w.name for w in writers]
        for found in proof.writers:
            assert found.left == pytest.approx([abs(1 - float(STRENGTHS[found.layer]))] * 2, abs=1e-5)
            assert found.expected_left == pytest.approx(found.left, abs=1e-5)
            assert found.change == pytest.approx(found.expected_change, rel=1e-4)
            assert found.change > 0.01
            assert found.gap <= 1e-5
            assert found.leak <= 1e-5
        first, second = proof.blocks
        assert first.added_before > 0.02
        assert first.added_after <= 1e-5
        assert second.added_after > 1e-3
        assert max(first.unlisted, second.unlisted) <= 1e-4


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "gemma3"])
def test_an_adapter_is_proven_by_the_same_measurement(tiny, tmp_path, name):
    model = tiny(name)
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, STRENGTHS)
    before = observe(model, writers, plan)
    save_adapter(model, make_adapter(model, writers, plan), tmp_path / "adapter", card="")
    proof = prove(with_adapter(model, tmp_path / "adapter"), writers, plan, before=before)
    assert not proof.faults
    assert max(w.gap for w in proof.writers) <= 1e-5


@pytest.mark.parametrize("gamma", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("apply", [hooked, baked])
@pytest.mark.parametrize("missing", [0, 3])
def test_a_writer_that_nobody_knows_of_is_found(tiny, apply, gamma, missing):
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.full((2,), gamma))
    fewer = writers[:missing] + writers[missing + 1 :]
    without = EditPlan(plan.edits[:missing] + plan.edits[missing + 1 :])
    proof = apply(model, fewer, without)
    name = model.block_names[writers[missing].layer]
    assert len(proof.faults) == 1
    assert proof.faults[0].startswith(f"Block {name} adds the direction through something that is not among its writers:")
    assert not apply(tiny("qwen3"), writers, plan).faults


def test_a_block_that_nobody_knows_of_is_found(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    proof = hooked(model, writers[:2], make_plan(writers[:2], VECTORS, torch.ones(2)))
    assert proof.faults == ("Block model.layers.1 adds to the stream, but no writer of it is known.",)


def test_an_edit_that_was_not_made_or_made_otherwise_is_found(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    before = observe(model, writers, plan)
    idle = prove(model, writers, plan, before=before)
    assert len(idle.faults) == 4
    assert all(w.left == pytest.approx([1, 1]) and w.change == 0 for w in idle.writers)
    with torch.no_grad():
        bake(model, writers, plan)
        model.blocks[1].mlp.down_proj.weight[:, 0] += 0.5
    moved = prove(model, writers, plan, before=before)
    assert [f.split(" puts out")[0] for f in moved.faults] == ["Writer model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_any_more_is_a_fault(tiny, value):
    """NaN is neither above a tolerance nor below it."""
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    before = observe(model, writers, plan)
    bake(model, writers, plan)
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight[0, 0] = value
    faults = prove(model, writers, plan, before=before).faults
    assert any(f.startswith("Writer model.layers.1.mlp.down_proj puts out something else") for f in faults)


def test_a_writer_that_was_silent_and_speaks_is_a_fault(tiny):
    model = tiny("qwen3")
    model.blocks[1].mlp.down_proj.weight.data.zero_()
    writers = find_writers(tiny("qwen3"))
    plan = make_plan(writers, VECTORS, torch.ones(2))
    before = observe(model, writers, plan)
    bake(model, writers, plan)
    assert not prove(model, writers, plan, before=before).faults
    model.blocks[1].mlp.down_proj.weight.data.add_(0.5)
    faults = prove(model, writers, plan, before=before).faults
    assert any(f.startswith("Writer model.layers.1.mlp.down_proj puts out something else") for f in faults)


def test_writers_left_alone_are_listed_with_the_reason(tiny):
    model = tiny("gemma3_vl")
    writers = find_writers(model)
    halves = {"attention": torch.tensor([1.0, 0.0]), "mlp": torch.zeros(2)}
    proof = hooked(model, writers, make_plan(writers, VECTORS, halves))
    assert not proof.faults
    assert [w.writer for w in proof.writers] == [writers[0].name]
    reasons = {u.name: u.reason for u in proof.untouched}
    assert {w.name for w in writers[1:]} < set(reasons)
    assert reasons[writers[2].name] == "strength 0 at layer 1"
    assert "only on request" in reasons["model.language_model.embed_tokens"]
    assert "same tensor as the token embedding" in reasons["lm_head.weight"]
    assert "outside the text decoder" in reasons["model.vision_tower"]
    # What the other half of the block still adds is shown.
    assert proof.blocks[0].added_after > 0.02


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss"])
def test_the_leak_of_row_norms_is_in_the_proof_and_columns_have_none(tiny, name):
    leaks = {}
    for kind in ("column", "row"):
        model = tiny(name)
        writers = find_writers(model)
        proof = baked(model, writers, make_plan(writers, VECTORS, torch.ones(2), preserve=kind))
        assert not proof.faults
        assert {w.preserve for w in proof.writers} == {kind}
        assert all(w.change == pytest.approx(w.expected_change, rel=1e-4) for w in proof.writers)
        leaks[kind] = max(w.leak for w in proof.writers)
    assert leaks["column"] <= 1e-5
    assert leaks["row"] > 1e-2


def test_with_the_embeddings_the_stream_itself_is_free(tiny):
    model = tiny("qwen3")
    writers, embeddings = find_writers(model), find_embeddings(model)
    vectors = VECTORS[:1].expand(2, 2, 32)
    blocks_only = make_plan(writers, vectors, torch.ones(2))
    everything = joined(blocks_only, removal_plan(embeddings, vectors[0], 1.0))
    assert min(b.stream_after for b in hooked(model, (*writers, *embeddings), blocks_only).blocks) > 0.02
    proof = hooked(model, (*writers, *embeddings), everything)
    assert not proof.faults
    assert proof.writers[-1].kind == "embedding"
    assert max(b.stream_after for b in proof.blocks) <= 1e-6
    assert "model.embed_tokens" not in {u.name for u in proof.untouched}


def test_half_precision_is_proven_within_its_rounding(tiny):
    model = tiny("qwen3")
    model.network.bfloat16()
    writers = find_writers(model)
    proof = baked(model, writers, make_plan(writers, VECTORS, STRENGTHS))
    assert not proof.faults
    assert 1e-4 < max(w.gap for w in proof.writers) < 1e-2
    assert max(b.unlisted for b in proof.blocks) <= 1e-4


def test_the_document_is_json_and_says_everything(tiny, tmp_path):
    model = tiny("qwen3")
    writers = find_writers(model)
    document = hooked(model, writers, make_plan(writers, VECTORS, STRENGTHS)).to_json()
    artifacts.write_json(tmp_path / "edit_proof.json", document)
    again = json.loads((tmp_path / "edit_proof.json").read_text())
    assert again["format"] == "resect.edit_proof/1"
    assert [len(again[k]) for k in ("writers", "blocks", "untouched", "faults")] == [4, 2, 1, 0]


def test_an_empty_plan_touches_nothing_and_says_so(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    proof = hooked(model, writers, EditPlan(()))
    assert (proof.writers, proof.blocks, proof.faults) == ((), (), ())
    assert {u.name for u in proof.untouched} == {*(w.name for w in writers), "model.embed_tokens"}


def test_a_plan_of_another_model_is_refused(tiny):
    writers = find_writers(tiny("qwen3"))
    other = tiny("gpt2")
    with pytest.raises(UserError, match="writers that this model lacks"):
        observe(other, find_writers(other), make_plan(writers, VECTORS, torch.ones(2)))
