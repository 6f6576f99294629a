"""`resect apply` on checkpoints: from disk to disk, the same model as in memory, and hostile folders refused in one line."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from resect import artifacts
from resect.edit import output
from resect.models import load
from resect.models.load import load_model


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Nothing here has to outlast a power cut, and a busy disk takes seconds for every file."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A sharded checkpoint; not to be changed."""
    model, place = tiny("qwen3"), tmp_path_factory.mktemp("model") / "tiny"
    model.network.save_pretrained(place, max_shard_size="40KB")
    model.tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def directions(tmp_path_factory):
    """A directions file for it."""
    path = tmp_path_factory.mktemp("directions") / "directions.safetensors"
    vectors = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    artifacts.save_tensors(path, {"vectors": vectors}, {"format": "resect.directions/1"})
    return path


@torch.no_grad()
def logits(folder):
    return load_model(folder, device="cpu").network(input_ids=torch.arange(20, 40)[None]).logits


def test_it_is_the_model_that_apply_makes_in_memory(folder, directions, resect, tmp_path, monkeypatch):
    arguments = ("apply", folder, "--directions", directions, "--strength", "1.5", "--layers", "1-1")
    in_memory = resect(*arguments, "--dtype", "float32", "--out", tmp_path / "memory", "--json").json

    def never(*_, **__):
        raise AssertionError("the model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(load.AutoModelForCausalLM, "from_pretrained", never)
        streamed = resect(*arguments, "--out", tmp_path / "streamed", "--json").json
    wanted, found = logits(tmp_path / "memory"), logits(tmp_path / "streamed")
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert (logits(folder) - wanted).norm() > 1e-2 * wanted.norm()
    assert (in_memory["form"], streamed["form"]) == ("baked", "streamed")
    assert [c["name"] for c in streamed["changes"]] == [c["name"] for c in in_memory["changes"]]
    for change in streamed["changes"]:
        assert change["left"][0] == pytest.approx(change["expected_left"], abs=1e-4)
        assert change["change"] == pytest.approx(change["expected_change"], rel=1e-4)
    assert {"name": "model.layers.0.mlp.down_proj", "reason": "strength 0 at layer 0"} in streamed["untouched"]
    proof = json.loads((tmp_path / "streamed" / "edit_proof.json").read_text())
    assert proof == {k: v for k, v in streamed.items() if k in proof}
    card = (tmp_path / "streamed" / "README.md").read_text()
    assert "strength 1.5, layers 1 to 1" in card
    assert "## Responsible use" in card
    assert str(tmp_path) not in card


def test_the_table_lists_every_parameter(folder, directions, resect, tmp_path):
    said = resect("apply", folder, "--directions", directions, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert said.out.count("down_proj.weight") == said.out.count("o_proj.weight") == 2
    assert f"Edited model: {tmp_path / 'out'}" in said.out


def index(folder):
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


def point(folder, name):
    path, data = index(folder)
    data["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(data))


def shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def outside(folder):
    target = shard(folder).rename(folder.parent / "outside.safetensors")
    (folder / "model-00001-of-00004.safetensors").symlink_to(target)


def lie(folder):
    path = shard(folder)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = next(k for k in header if k != "__metadata__")
    header[name]["data_offsets"] = [0, 1 << 40]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def poison(folder):
    path = next(p for p in folder.glob("*.safetensors") if "model.layers.1.mlp.down_proj.weight" in load_file(p))
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def fifo(folder):
    path = shard(folder)
    path.unlink()
    os.mkfifo(path)


def remote(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\nclass C: pass\n")


def quantised(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    path = next(p for p in folder.glob("*.safetensors") if "model.layers.1.mlp.down_proj.weight" in load_file(p))
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path, metadata={"format": "pt"})


HOSTILE = {
    "up": lambda folder: point(folder, "../x.safetensors"),
    "absolute": lambda folder: point(folder, "/tmp/x.safetensors"),
    "NUL": lambda folder: point(folder, "x\x00.safetensors"),
    "missing": lambda folder: shard(folder).unlink(),
    "link out": outside,
    "offsets": lie,
    "cut": lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-1]),
    "empty": lambda folder: shard(folder).write_bytes(b""),
    "pickle": lambda folder: shard(folder).write_bytes(b"\x80\x04\x95" + b"\x00" * 64),
    "fifo": fifo,
    "NaN": poison,
    "config": lambda folder: (folder / "config.json").write_text("{"),
    "bomb": lambda folder: index(folder)[0].write_text("[" * 200_000),
    "code": remote,
    "FP8": quantised,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_and_leaves_nothing(folder, directions, resect, tmp_path, name):
    import shutil

    place = tmp_path / "model"
    shutil.copytree(folder, place)
    HOSTILE[name](place)
    before = sorted(tmp_path.rglob("*"))
    said = resect("apply", place, "--directions", directions, "--out", tmp_path / "out")
    errors = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert (said.code, said.out, len(errors)) == (2, "", 1), said
    assert "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_out_in_the_model_is_refused_before_anything_is_read(folder, directions, refuses):
    out = folder / "out"
    message = f"The output {out} and the model {folder} lie in one another, and a model is never edited in place; choose another."
    refuses("apply", folder, "--directions", directions, "--out", out, message=message)
    assert output.JOURNAL not in {p.name for p in folder.iterdir()}
