"""Writers of a checkpoint on disk: the same as those of the loaded model, with one block in memory at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from resect.errors import UserError
from resect.models import blockwise
from resect.models.blockwise import skeleton_writers
from resect.models.load import load_model
from resect.models.skeleton import open_skeleton
from resect.models.writers import find_writers


def save(model, folder, **options):
    model.network.save_pretrained(folder, **options)
    model.tokenizer.save_pretrained(folder)
    return folder


def same(found, wanted):
    def facts(writers):
        return [(w.name, w.layer, w.kind, w.module, w.parameters) for w in writers]

    assert facts(found) == facts(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.coefficient == pytest.approx(theirs.coefficient, abs=1e-4)
        assert (ours.gain is None) == (theirs.gain is None)
        assert theirs.gain is None or torch.equal(ours.gain, theirs.gain)


def test_they_are_those_of_the_loaded_model(tiny, tmp_path, family):
    model = tiny(family)
    same(skeleton_writers(open_skeleton(save(model, tmp_path))), find_writers(model))


def test_half_precision_gives_the_same(tiny, tmp_path):
    model = tiny("gemma3")
    model.network.bfloat16()
    folder = save(model, tmp_path)
    same(skeleton_writers(open_skeleton(folder)), find_writers(load_model(folder, device="cpu")))


@pytest.fixture
def deep(tiny, tmp_path):
    """A function: a folder of a model with this many blocks, all of one structure."""

    def build(kind, layers, **changes):
        from transformers import AutoModelForCausalLM

        config = tiny(kind).network.config
        config.num_hidden_layers = layers
        for name, value in changes.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
        network.save_pretrained(tmp_path / "deep")
        return tmp_path / "deep"

    return build


@pytest.mark.parametrize(("name", "proven"), [("llama", 1), ("olmo2", 1), ("gemma3", 2)])
def test_one_block_of_each_structure_is_proven_and_gains_are_each_blocks_own(deep, monkeypatch, name, proven):
    types = ["sliding_attention", "full_attention"] * 3
    folder = deep(name, 6, **({"layer_types": types} if name == "gemma3" else {}))
    names, own = [], blockwise.prove_block
    monkeypatch.setattr(blockwise, "prove_block", lambda *args, **more: names.append(more["name"]) or own(*args, **more))
    writers = skeleton_writers(open_skeleton(folder))
    assert len(names) == proven
    assert len(writers) == 12
    gains = [w.gain for w in writers if w.gain is not None]
    assert len(gains) == (0 if name == "llama" else 12)
    assert not any(torch.equal(a, b) for k, a in enumerate(gains) for b in gains[:k])


def test_gains_are_told_apart_where_all_norms_are_alike(deep):
    folder = deep("olmo2", 3)
    path = folder / "model.safetensors"
    stored = {k: torch.ones_like(v) if v.ndim == 1 else v for k, v in load_file(path).items()}
    own = stored["model.layers.2.post_feedforward_layernorm.weight"] = torch.linspace(0.5, 2, 32)
    save_file(stored, path, metadata={"format": "pt"})
    found = {w.name: w.gain for w in skeleton_writers(open_skeleton(folder))}
    assert torch.equal(found["model.layers.2.mlp.down_proj"], own)
    assert [name for name, gain in found.items() if gain is not None] == ["model.layers.2.mlp.down_proj"]


def test_memory_holds_one_block_at_a_time(deep, monkeypatch):
    skeleton = open_skeleton(deep("llama", 4))
    most, own = [], blockwise.prove_block

    def counting(*args, **more):
        blocks = {n.split(".layers.")[1].split(".")[0] for n, p in skeleton.network.named_parameters() if ".layers." in n and not p.is_meta}
        most.append(len(blocks))
        return own(*args, **more)

    monkeypatch.setattr(blockwise, "prove_block", counting)
    skeleton_writers(skeleton)
    assert set(most) == {1}
    assert all(p.is_meta for p in skeleton.network.parameters())


def test_a_block_that_a_later_one_depends_on_runs(deep, monkeypatch):
    """If handing inputs on breaks the pass, every block runs, and the writers are the same."""
    folder = deep("llama", 3)
    wanted = skeleton_writers(open_skeleton(folder))
    own, tried = blockwise._pass, []

    def breaking(skeleton, *, running):
        tried.append(len(running))
        if len(running) == 1:
            raise KeyError("shared keys and values of block 1")
        return own(skeleton, running=running)

    monkeypatch.setattr(blockwise, "_pass", breaking)
    same(skeleton_writers(open_skeleton(folder)), wanted)
    assert tried == [1, 3]


def test_a_network_that_does_not_run_without_its_weights_is_refused(deep, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(blockwise, "_pass", broken)
    with pytest.raises(UserError, match=r"cannot be run on text block by block \(Tensor.item\(\) .* load the whole model instead"):
        skeleton_writers(open_skeleton(deep("llama", 2)))


def test_a_block_whose_parts_do_not_add_up_is_refused_with_its_own_weights(deep):
    folder = deep("llama", 2)
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model.layers.0.mlp.up_proj.weight of .* holds NaN or infinity"):
        skeleton_writers(open_skeleton(folder))


def test_prefixes_of_older_checkpoints_are_understood(tiny, tmp_path):
    """A checkpoint saved from the base model alone has no prefix; one of a vision-language model may have another."""
    model = tiny("llama")
    folder = save(model, tmp_path)
    path = folder / "model.safetensors"
    save_file({k.removeprefix("model."): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    same(skeleton_writers(open_skeleton(folder)), find_writers(model))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
