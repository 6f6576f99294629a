import json
import sys
import warnings

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, MambaConfig

from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, joined, make_plan, removal_plan
from resect.edit.save import save_edited
from resect.errors import UserError
from resect.models.embeddings import find_embeddings
from resect.models.load import wrap
from resect.models.writers import find_writers

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def logits(network):
    return network(input_ids=IDS, use_cache=False).logits


def distance(a, b):
    return float((a - b).norm() / b.norm())


def plan_of(writers, gamma=1.0, **options):
    return make_plan(writers, VECTORS, torch.tensor([gamma, 0.5 * gamma]), **options)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "qwen2_moe", "deepseek_v3"])
def test_an_ordinary_peft_folder_on_the_base_from_disk(tiny, tmp_path, name):
    """Conv1D with biases; stacked experts with stacked biases and biased linear layers; stacked and shared experts; a dense block first."""
    model = tiny(name)
    writers = find_writers(model)
    save_edited(model, tmp_path / "base", card="")
    save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="# Adapter\n")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    with applied(model, writers, plan_of(writers)):
        hooked = logits(model.network)
    assert distance(logits(loaded), hooked) <= 1e-5
    assert distance(logits(loaded.merge_and_unload()), hooked) <= 1e-5
    assert distance(logits(model.network), hooked) > 1e-2


def test_factors_have_the_rank_of_the_edit_and_no_more(tiny, tmp_path):
    model = tiny("qwen3")
    writers = find_writers(model)
    plan = joined(
        make_plan(writers[:1], VECTORS[:, :1], torch.ones(2)),
        make_plan(writers[1:], VECTORS, torch.ones(2)),
    )
    save_adapter(model, make_adapter(model, writers, plan), tmp_path / "adapter", card="")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(tensors) == 2 * len(writers)
    for edit in plan.edits:
        weight = model.network.get_submodule(edit.writer).weight
        a, b = (tensors[f"base_model.model.{edit.writer}.lora_{side}.weight"] for side in "AB")
        assert torch.linalg.matrix_rank(b @ a) == edit.u.shape[1]
        torch.testing.assert_close(b @ a, -edit.gamma * edit.u @ (edit.c.T @ weight), atol=1e-6, rtol=1e-5)


def test_embeddings_too_where_the_head_is_another_tensor(tiny, tmp_path):
    model, again = tiny("qwen3"), tiny("qwen3")
    writers = (*find_writers(model), *find_embeddings(model))
    plan = joined(plan_of(writers[:-1]), removal_plan(writers[-1:], VECTORS[0], 1.0))
    with applied(model, writers, plan):
        hooked = logits(model.network)
    save_adapter(model, make_adapter(model, writers, plan), tmp_path / "adapter", card="")
    assert distance(logits(with_adapter(again, tmp_path / "adapter").network), hooked) <= 1e-5
    tied = tiny("gemma3")
    embeddings = find_embeddings(tied)
    with pytest.raises(UserError, match=r"embed_tokens\.weight is the output head lm_head\.weight as well"):
        make_adapter(tied, embeddings, removal_plan(embeddings, VECTORS[0], 1.0))


def test_what_an_adapter_cannot_hold_is_refused_by_name(tiny):
    model = tiny("qwen3")
    writers = find_writers(model)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.o_proj keeps column norms, so it changes the weight by a matrix of full"):
        make_adapter(model, writers, plan_of(writers, preserve="column"))
    with pytest.raises(UserError, match="changes nothing"):
        make_adapter(model, writers, EditPlan(()))


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    model = tiny("qwen3")
    writers = find_writers(model)
    save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")
    with pytest.raises(UserError, match="PEFT does not take the adapter for GPT2LMHeadModel"):
        with_adapter(tiny("gpt2"), tmp_path / "adapter")


def mamba(tiny, **options):
    torch.manual_seed(3)
    config = MambaConfig(vocab_size=260, hidden_size=32, state_size=8, num_hidden_layers=2, **options)
    return wrap(AutoModelForCausalLM.from_config(config), tiny("qwen3").tokenizer, name="mamba")


def test_where_peft_allows_no_lora_the_same_matrix_is_a_lokr(tiny, tmp_path):
    model = mamba(tiny)
    writers = find_writers(model)
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        peft.get_peft_model(mamba(tiny).network, peft.LoraConfig(target_modules=["out_proj"]))
    with applied(model, writers, plan_of(writers)):
        hooked = logits(model.network)
    save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        shapes = {name.rpartition(".")[2]: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert shapes == {"lokr_w1": (1, 1), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 64)}
    loaded = peft.PeftModel.from_pretrained(mamba(tiny).network, str(tmp_path / "adapter"))
    assert distance(logits(loaded), hooked) <= 1e-5
    assert distance(logits(loaded.merge_and_unload()), hooked) <= 1e-5
    assert distance(logits(model.network), hooked) > 1e-2


def test_a_bias_that_no_adapter_holds_is_refused_by_name(tiny):
    model = mamba(tiny, use_bias=True)
    writers = find_writers(model)
    with pytest.raises(UserError, match=r"hold no bias such as backbone\.layers\.0\.mixer\.out_proj\.bias; save the edited model"):
        make_adapter(model, writers, plan_of(writers))


def test_an_adapter_that_peft_would_not_take_is_not_written(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("Module is incompatible.")

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", refuse)
    model = tiny("qwen3")
    writers = find_writers(model)
    with pytest.raises(UserError, match=r"PEFT does not take the adapter for Qwen3ForCausalLM: Module is incompatible\.; save the edited"):
        save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")
    assert list(tmp_path.iterdir()) == []


def test_factors_that_peft_only_warns_of_are_an_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_: warnings.warn("Found missing adapter keys while ...", stacklevel=2))
    model = tiny("qwen3")
    writers = find_writers(model)
    with pytest.raises(UserError, match="does not take the adapter for Qwen3ForCausalLM: Found missing adapter keys"):
        save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")


def test_half_precision_keeps_float32_factors(tiny, tmp_path):
    model, again = tiny("qwen3"), tiny("qwen3")
    model.network.bfloat16()
    again.network.bfloat16()
    writers = find_writers(model)
    with applied(model, writers, plan_of(writers)):
        hooked = logits(model.network)
    save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")
    assert distance(logits(with_adapter(again, tmp_path / "adapter").network), hooked) < 2e-2


def test_without_peft_the_extra_is_named(tiny, tmp_path, monkeypatch):
    model = tiny("qwen3")
    writers = find_writers(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'resect\[peft\]'"):
        save_adapter(model, make_adapter(model, writers, plan_of(writers)), tmp_path / "adapter", card="")
    assert not (tmp_path / "adapter").exists()
