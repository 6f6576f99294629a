"""The identity of a model: the same when it is loaded again, another one when anything that decides its numbers changes."""

import importlib.util
import json
import sys

import pytest
import torch

from resect.models import identity as module
from resect.models.identity import asked_through, checksum, has_hooks, identity
from resect.models.load import load_model, wrap


@pytest.fixture
def folder(tiny, tmp_path):
    model = tiny("qwen3")
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def one_model(tiny):
    return tiny("qwen3")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_keeps_its_identity_when_it_is_loaded_again(folder):
    assert identity(load_model(folder)) == identity(load_model(folder))


CHANGES = {
    "the last weight byte": lambda folder: flip(folder / "model.safetensors", -1),
    "the first weight byte": lambda folder: flip(
        folder / "model.safetensors", 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    ),
    "a setting of the architecture": lambda folder: change(folder / "config.json", rms_norm_eps=2e-6),
    "the tokens that end a turn": lambda folder: change(folder / "generation_config.json", eos_token_id=[2, 3]),
    "the chat template": lambda folder: (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + " "),
    "the tokenizer": lambda folder: change(folder / "tokenizer.json", decoder={"type": "Fuse"}),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_change_on_disk_makes_another_model(folder, what):
    before = load_model(folder)
    CHANGES[what](folder)
    after = load_model(folder)
    assert identity(after) != identity(before)
    between = what in ("the tokens that end a turn", "the chat template", "the tokenizer")
    assert (asked_through(after) != asked_through(before)) is between, "what stands between text and network, and nothing else"


def test_another_dtype_is_another_model(folder):
    found = {identity(load_model(folder, dtype=dtype)) for dtype in ("float32", "bfloat16", "float16")}
    assert len(found) == 3


def test_weights_written_over_in_memory_make_another_model(one_model):
    before = identity(one_model)
    with torch.no_grad():
        one_model.network.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 5] += 1e-3
    assert identity(one_model) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_the_checksum_sees_each_byte(dtype):
    tensor = (torch.randn(5, 3) > 0).to(dtype) if dtype == torch.bool else torch.randn(5, 3).to(dtype)
    for at in range(tensor.nbytes):
        changed = tensor.clone()
        changed.view(torch.uint8).flatten()[at] ^= 1
        assert checksum(changed) != checksum(tensor)
    assert checksum(tensor.T.contiguous().T) == checksum(tensor)
    assert checksum(torch.zeros(0, dtype=dtype)) == 0


def test_switches_that_change_the_last_bits_make_another_model(one_model):
    before, threads, precision = identity(one_model), torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = {before}
    try:
        torch.set_num_threads(threads + 1)
        found.add(identity(one_model))
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("medium")
        found.add(identity(one_model))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    one_model.network.set_attn_implementation("eager")
    found.add(identity(one_model))
    assert len(found) == 4


def test_versions_of_libraries_and_of_this_code_count(one_model, monkeypatch):
    found = {identity(one_model)}
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda name: "9.9" if name == "torch" else "1")
        found.add(identity(one_model))
    monkeypatch.setattr(module, "own_code", lambda: "another")
    found.add(identity(one_model))
    assert len(found) == 3


def test_code_that_comes_with_a_checkpoint_counts(one_model, tmp_path):
    file = tmp_path / "modeling_own.py"
    file.write_text("from torch import nn\nclass Own(nn.Identity):\n    pass\n")
    spec = importlib.util.spec_from_file_location("modeling_own", file)
    own = sys.modules["modeling_own"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(own)
        one_model.network.add_module("own", own.Own())
        model = wrap(one_model.network, one_model.tokenizer, name="own")
        before = identity(model)
        assert identity(model) == before
        file.write_text(file.read_text() + "# changed\n")
        assert identity(model) != before
    finally:
        del sys.modules["modeling_own"]


def test_own_code_is_all_that_can_change_a_result():
    files = module.own_files()
    assert {"studies/selection.py", "evaluation/markers.py", "data/refusal_markers.toml", "edit/plan.py"} <= set(files)
    assert not [name for name in files if name.startswith(("cli/", "commands/", "report/", "data/organism/")) or name.endswith(".pyc")]


def test_hooks_of_somebody_else_are_seen(one_model):
    assert not has_hooks(one_model)
    handle = one_model.blocks[0].register_forward_hook(lambda *_: None)
    assert has_hooks(one_model)
    handle.remove()
    assert not has_hooks(one_model)
