"""The network without data, and where it comes from."""

import json

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from resect.errors import UserError
from resect.models import skeleton as skeletons
from resect.models.load import load_model
from resect.models.skeleton import filled, filled_outside, open_skeleton


@pytest.fixture
def folder(tiny, tmp_path):
    """The folder of a tiny model."""
    tiny("qwen3").network.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_nothing_has_data_but_what_is_filled(folder):
    skeleton = open_skeleton(folder)
    network = skeleton.network
    assert all(p.is_meta for p in network.parameters())
    with filled(skeleton, skeleton.block_names[0]):
        assert not any(p.is_meta for p in skeleton.blocks[0].parameters())
        assert all(p.is_meta for p in skeleton.blocks[1].parameters())
    assert all(p.is_meta for p in network.parameters())
    with filled_outside(skeleton):
        assert network.get_input_embeddings().weight.shape[0] <= 512
        assert all(p.is_meta for block in skeleton.blocks for p in block.parameters())
    assert all(p.is_meta for p in network.parameters())
    assert {n: tuple(p.shape) for n, p in network.state_dict().items()} == skeleton.shapes


def test_values_are_those_on_disk(folder, tiny):
    model, skeleton = tiny("qwen3"), open_skeleton(folder)
    for name, value in model.network.state_dict().items():
        if name in skeleton.origins:
            assert torch.equal(skeleton.value(name), value)


def test_a_parameter_that_nothing_makes_is_refused(folder):
    skeleton = open_skeleton(folder)
    with pytest.raises(UserError, match=r"Parameter nothing.weight of Qwen3ForCausalLM comes from no tensor"):
        skeleton.value("nothing.weight")


def test_tied_parameters_are_known(tiny, tmp_path):
    tiny("gemma3").network.save_pretrained(tmp_path)
    assert open_skeleton(tmp_path).shared == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_tied_parameter_is_found_under_the_name_that_is_stored(tiny, tmp_path):
    model = tiny("gemma3")
    model.network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, path, metadata={"format": "pt"})
    skeleton = open_skeleton(tmp_path)
    assert torch.equal(skeleton.value("model.embed_tokens.weight"), model.network.get_input_embeddings().weight)
    assert skeleton.fingerprint == model.fingerprint


def test_modules_outside_the_decoder_have_data_only_while_text_needs_them(tiny, tmp_path):
    """The device of a network is that of its first parameter, which may belong to images."""
    tiny("qwen3_vl").network.save_pretrained(tmp_path)
    skeleton = open_skeleton(tmp_path)
    vision = skeleton.network.model.visual
    with filled_outside(skeleton):
        assert skeleton.network.device.type == skeleton.network.model.device.type == "cpu"
        assert vision.merger.norm.weight.is_meta
        vision.merger.norm(torch.zeros(1, vision.merger.norm.weight.numel()))
        assert not vision.merger.norm.weight.is_meta
    assert all(p.is_meta for p in skeleton.network.parameters())
    assert not any(module._forward_pre_hooks for module in skeleton.network.modules())


def test_a_config_of_another_network_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(UserError, match=r"must have shape .* do not fit config.json"):
        open_skeleton(folder).value("model.layers.0.mlp.down_proj.weight")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(UserError, match=r"configuration of .* cannot be read"):
        open_skeleton(folder)


def test_a_hub_id_is_its_snapshot(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(skeletons, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(folder))
    assert open_skeleton("owner/name", revision="abc").checkpoint.folder == folder
    (name, options) = asked[0]
    assert (name, options["revision"]) == ("owner/name", "abc")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in options["allow_patterns"])


def test_what_is_neither_folder_nor_on_the_hub_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no model folder"):
        open_skeleton(tmp_path / "none")

    def offline(*_, **__):
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(skeletons, "snapshot_download", offline)
    with pytest.raises(UserError, match="The checkpoint owner/name cannot be read or found on the Hub"):
        open_skeleton("owner/name")


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fingerprint_is_the_loaded_models(tiny, tmp_path, name, dtype):
    model = tiny(name)
    model.network.to(dtype).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert open_skeleton(tmp_path).fingerprint == load_model(tmp_path, device="cpu").fingerprint
