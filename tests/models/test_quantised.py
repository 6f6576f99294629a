"""Quantised checkpoints: recognised by their settings, by a file beside them or by dtype, refused unless every edited writer is plain."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from resect.edit.plan import EditPlan, WriterEdit
from resect.edit.stream import stream
from resect.errors import UserError
from resect.models.checkpoint import open_checkpoint
from resect.models.quantised import METHODS, method
from resect.models.skeleton import open_skeleton

NAME = "model.layers.1.mlp.down_proj"
KEY = f"{NAME}.weight"


@pytest.fixture
def folder(tiny, tmp_path):
    """A function: the folder of a tiny model with other tensors and settings."""

    def make(change=lambda _: None, *, kind="qwen3", files=None, **settings):
        model = tiny(kind)
        place = tmp_path / "model"
        model.network.bfloat16().save_pretrained(place)
        tensors = load_file(place / "model.safetensors")
        change(tensors)
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | settings))
        for name, content in (files or {}).items():
            (place / name).write_text(json.dumps(content))
        return place

    return make


def edit(name, d_model=32):
    factor = torch.eye(d_model)[:, :1]
    return EditPlan((WriterEdit(name, factor, factor, 1.0),))


def replaced(key, **others):
    def change(tensors):
        tensors.pop(key)
        tensors.update(others)

    return change


def beside(**others):
    return lambda tensors: tensors.update(others)


# What each method leaves on disk for one linear layer.
STORED = {
    "fp8": (beside(**{KEY: torch.zeros(32, 40).to(torch.float8_e4m3fn), f"{KEY}_scale_inv": torch.ones(1, 1)}), "is stored as F8_E4M3"),
    "fbgemm_fp8": (beside(**{KEY: torch.zeros(32, 40).to(torch.float8_e4m3fn), f"{KEY}_scale": torch.ones(32)}), "is stored as F8_E4M3"),
    "awq": (
        replaced(KEY, **{f"{NAME}.qweight": torch.zeros(40, 4, dtype=torch.int32), f"{NAME}.scales": torch.ones(1, 32)}),
        "is not stored",
    ),
    "gptq": (
        replaced(KEY, **{f"{NAME}.qweight": torch.zeros(5, 32, dtype=torch.int32), f"{NAME}.g_idx": torch.zeros(40)}),
        "is not stored",
    ),
    "bitsandbytes": (beside(**{KEY: torch.zeros(640, 1, dtype=torch.uint8), f"{KEY}.absmax": torch.ones(20)}), "is stored as U8"),
    "compressed-tensors": (replaced(KEY, **{f"{NAME}.weight_packed": torch.zeros(32, 5, dtype=torch.int32)}), "is not stored"),
    "modelopt": (beside(**{KEY: torch.zeros(32, 20, dtype=torch.uint8), f"{KEY}_scale": torch.ones(32, 3)}), "is stored as U8"),
    "torchao": (beside(**{KEY: torch.zeros(32, 40, dtype=torch.int8)}), "is stored as I8"),
    "mxfp4": (replaced(KEY, **{f"{NAME}.weight_blocks": torch.zeros(32, 2, 16, dtype=torch.uint8)}), "is not stored"),
    "scaled 16-bit": (beside(**{f"{KEY}_scale": torch.ones(32)}), f"goes with {KEY}_scale"),
}


@pytest.mark.parametrize("name", STORED)
def test_an_edit_of_a_quantised_writer_is_refused_by_name(folder, tmp_path, name):
    change, why = STORED[name]
    place = folder(change, quantization_config={"quant_method": name})
    with pytest.raises(UserError) as caught:
        stream(place, edit(NAME), tmp_path / "out")
    said = str(caught.value)
    assert said.startswith(f"{place} is quantised ({METHODS.get(name, name)}) and {KEY}, which the edit would change, {why}")
    assert "dequantise it to a 16-bit checkpoint first, or edit the 16-bit original" in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_writers_that_stayed_plain_are_edited_and_the_rest_is_copied(folder, tmp_path):
    """Quantised are: another layer's writer, and a weight of the edited block that writes nothing to the stream."""
    eighth = torch.randn(40, 32).to(torch.float8_e4m3fn)

    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = eighth
        tensors["model.layers.0.mlp.down_proj.weight"] = torch.randn(32, 40).to(torch.float8_e4m3fn)

    place = folder(change, quantization_config={"quant_method": "fp8"})
    stream(place, edit(NAME), tmp_path / "out")
    old, new = (load_file(f / "model.safetensors") for f in (place, tmp_path / "out"))
    assert {k for k in old if not torch.equal(old[k].view(torch.uint8), new[k].view(torch.uint8))} == {KEY}
    assert not new[KEY][0].any()


def test_experts_in_four_bits_beside_plain_attention(folder, tmp_path):
    """As gpt-oss is published: attention can be edited, experts are refused."""
    experts = "model.layers.1.mlp.experts"

    def change(tensors):
        for layer in range(2):
            for part in ("down_proj", "gate_up_proj"):
                tensors.pop(f"model.layers.{layer}.mlp.experts.{part}")
                tensors[f"model.layers.{layer}.mlp.experts.{part}_blocks"] = torch.zeros(4, 32, 2, 16, dtype=torch.uint8)
                tensors[f"model.layers.{layer}.mlp.experts.{part}_scales"] = torch.zeros(4, 32, 2, dtype=torch.uint8)

    place = folder(change, kind="gpt_oss", quantization_config={"quant_method": "mxfp4"})
    stream(place, edit("model.layers.1.self_attn.o_proj"), tmp_path / "out")
    with pytest.raises(UserError, match=rf"is quantised \(MXFP4\) and {experts}.down_proj, which the edit would change, is not stored"):
        stream(place, edit("model.layers.1.mlp"), tmp_path / "again")


def test_how_it_is_recognised(folder):
    def found(*args, **settings):
        return method(open_checkpoint(folder(*args, **settings)))

    assert found() is None
    assert found(text_config={"quantization_config": {"quant_method": "fp8"}}) == "FP8"
    assert found(compression_config={"quant_method": "compressed-tensors"}) == "compressed-tensors"
    assert found(quantization_config={"quant_method": "brand-new"}) == "brand-new"
    assert found(quantization_config={}) == "unknown"
    assert found(beside(x=torch.zeros(2, dtype=torch.uint8))) == "stored as U8"
    assert found(files={"hf_quant_config.json": {}}) == "as hf_quant_config.json says"


def test_the_network_is_built_as_if_it_were_not_quantised(folder):
    skeleton = open_skeleton(folder(quantization_config={"quant_method": "mxfp4"}))
    assert type(skeleton.network.get_submodule(NAME)) is torch.nn.Linear
