import pytest
import torch
from torch import nn

from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import joined, make_plan, removal_plan
from resect.edit.save import save_edited
from resect.errors import UserError
from resect.models.embeddings import embedding_names, find_embeddings, outside_decoder, tied_head, untied
from resect.models.load import load_model
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(6)).expand(2, 2, 32)
TIED = {"mistral3", "gemma2", "gemma3", "gemma3_vl", "gpt2", "bloom"}


@torch.no_grad()
def logits(model):
    return model.network(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def stream(model):
    """The residual stream before block 0 and after every block, [place, token, d_model]."""
    places = []
    first = model.blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: places.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    rest = [b.register_forward_hook(lambda _m, _a, out: places.append(out[0] if isinstance(out, tuple) else out)) for b in model.blocks]
    logits(model)
    for handle in (first, *rest):
        handle.remove()
    return torch.stack([p.reshape(-1, 32) for p in places])


def share(model):
    units = nn.functional.normalize(VECTORS[0], dim=1)
    found = stream(model)
    return float(((found @ units.T).norm(dim=(1, 2)) / found.norm(dim=(1, 2))).max())


def test_the_stream_itself_is_free_of_the_direction(tiny, family):
    model = tiny(family)
    if family == "bloom":
        with pytest.raises(UserError, match=r"no sum of embeddings \(transformer\.word_embeddings; relative gap"):
            find_embeddings(model)
        return
    writers, embeddings = find_writers(model), find_embeddings(model)
    assert [e.name for e in embeddings] == list(embedding_names(model))
    blocks_only = make_plan(writers, VECTORS, torch.ones(2))
    everything = joined(blocks_only, removal_plan(embeddings, VECTORS[0], 1.0))
    with applied(model, writers, blocks_only):
        assert share(model) > 0.02
    with applied(model, (*writers, *embeddings), everything):
        assert share(model) <= 1e-6
    assert share(model) > 0.02


@pytest.mark.parametrize("name", ["deepseek_v4", "qwen4_exp"])
def test_every_one_of_several_streams_starts_as_the_embedding(tiny, name):
    model = tiny(name)
    (found,) = find_embeddings(model)
    assert found.coefficient == pytest.approx(1, abs=1e-6)
    model.blocks[0].register_forward_pre_hook(lambda _, args: (args[0] + torch.arange(args[0].numel()).view(args[0].shape), *args[1:]))
    with pytest.raises(UserError, match="no sum of embeddings"):
        find_embeddings(model)


def test_positions_are_a_table_of_their_own(tiny):
    assert [e.name for e in find_embeddings(tiny("gpt2"))] == ["transformer.wte", "transformer.wpe"]


def test_a_multiplier_is_found(tiny):
    model = tiny("granite")
    model.network.model.embedding_multiplier = 12.0
    assert find_embeddings(model)[0].coefficient == pytest.approx(12.0)


def test_ties_are_seen(tiny, family):
    assert (tied_head(tiny(family)) == "lm_head.weight") == (family in TIED)


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "gemma3_vl"])
def test_a_tied_head_is_kept_by_untying_and_a_saved_model_reads_back(tiny, tmp_path, name):
    model = tiny(name)
    embeddings = find_embeddings(model)
    plan = removal_plan(embeddings, VECTORS[0], 1.0)
    before = logits(model)
    with applied(model, embeddings, plan):
        hooked = logits(model)
    with pytest.raises(UserError, match=r"is shared with lm_head\.weight, which the edit would change as well; untie them first"):
        bake(model, embeddings, plan)
    own = untied(model)
    assert tied_head(own) is None
    assert own.notes[-1] == "lm_head.weight was tied to the token embedding and has weights of its own now."
    assert torch.equal(logits(own), before)
    bake(own, embeddings, plan)
    save_edited(own, tmp_path / "out", card="")
    found = logits(load_model(tmp_path / "out", device="cpu"))
    assert float((found - hooked).norm() / hooked.norm()) <= 1e-5
    assert float((hooked - before).norm() / before.norm()) > 1e-2


def test_untying_what_is_not_tied_is_refused(tiny):
    with pytest.raises(UserError, match="is not tied"):
        untied(tiny("qwen3"))


def test_encoders_are_named(tiny):
    assert outside_decoder(tiny("gemma3_vl")) == ("model.vision_tower", "model.multi_modal_projector")
    assert outside_decoder(tiny("qwen3")) == ()
