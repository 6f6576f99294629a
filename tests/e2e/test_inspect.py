"""`resect inspect`: with weights and without, and what it says of templates, dtypes, quantisation and memory."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from resect.commands import memory
from resect.organism.shipped import load_organism

QWEN3 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}"
)
ALWAYS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"


def save(model, folder):
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny, tmp_path):
    """A folder of a tiny random model."""
    return save(tiny("qwen3"), tmp_path / "tiny")


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_both_ways_say_the_same_but_for_the_writers(resect):
    full, files = (resect("inspect", "default", "--json", *extra).json for extra in ((), ("--no-weights",)))
    assert len(full["writers"]) == 12
    assert files["writers"] is None
    assert any("found out with the weights" in note for note in files["notes"])
    assert full["heeds_padding"] == {"capture": True, "scoring": True, "decoding": True}
    assert files["heeds_padding"] is None
    alike = set(full) - {"writers", "heeds_padding", "notes", "fingerprint", "model"}
    assert {name: full[name] for name in alike} == {name: files[name] for name in alike}
    network = load_organism().aligned().network
    assert full["parameters"] == sum(p.numel() for p in network.parameters())
    assert full["tied_embeddings"]
    assert (full["vocabulary"], full["quantisation"], full["asks_for_remote_code"]) == (452, None, False)
    assert files["stored"] == {"F32": 4 * full["parameters"]}


def test_the_memory_is_told_for_every_stage(resect, folder):
    found = resect("inspect", folder, "--json").json
    stages = {row["stage"]: row for row in found["memory"]["stages"]}
    assert list(stages) == ["load", "capture", "study", "save"]
    weights = 4 * found["parameters"]
    assert all(weights < row["device"] < 200 * 2**20 for row in stages.values())
    # One prompt longer than a batch may be is a batch of its own, and holds more.
    longer = resect("inspect", folder, "--json", "--no-weights", "--prompt-tokens", 20_000).json["memory"]
    assert longer["prompt_tokens"] == 20_000
    assert longer["stages"][1]["device"] > stages["capture"]["device"]
    half = resect("inspect", folder, "--json", "--no-weights", "--dtype", "bfloat16").json
    assert half["dtype"] == "bfloat16"
    assert half["memory"]["stages"][0]["device"] < stages["load"]["device"]
    said = resect("inspect", folder, "--no-weights").out
    assert "predicted for prompts of 128 tokens at the default settings" in said
    assert [line.split()[0] for line in said.splitlines() if line.split()[:1] in (["load"], ["capture"], ["study"], ["save"])] == list(
        stages
    )


def test_a_network_that_does_not_heed_padding_is_named(resect, tiny, tmp_path):
    folder = save(tiny("deepseek_v4"), tmp_path / "tiny")
    found = resect("inspect", folder, "--json").json
    assert found["heeds_padding"] == {"capture": False, "scoring": False, "decoding": False}
    assert sum("batches hold prompts of equal length only" in note for note in found["notes"]) == 1
    assert "heeds padding: capture no, scoring no, decoding no" in resect("inspect", folder).out


def test_no_weight_is_read_without_weights(resect, folder):
    """The values are broken, and nobody looks at them; with weights they are refused."""
    path = folder / "model.safetensors"
    save_file({name: torch.full_like(t, torch.nan) for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    assert resect("inspect", folder, "--no-weights").code == 0
    assert "NaN" in resect("inspect", folder).err


def test_a_model_too_large_for_the_machine_is_named(resect, folder, monkeypatch):
    assert not resect("inspect", folder, "--no-weights", "--json").json["notes"][1:]
    monkeypatch.setattr(memory, "host_bytes", lambda: 30 * 2**20)
    notes = resect("inspect", folder, "--no-weights", "--json").json["notes"]
    assert any(n.startswith("Stage study is predicted to need ") and "more than the 30.0 MiB that this machine has" in n for n in notes)
    assert not any("Stage load" in n for n in notes)


def test_the_size_of_a_large_model_needs_no_memory(resect, folder):
    """A configuration of 70 billion parameters, told on a machine that could not hold one of its layers."""
    config(folder, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    config(folder, head_dim=128, vocab_size=128256, dtype="bfloat16", layer_types=["full_attention"] * 80)
    found = resect("inspect", folder, "--no-weights", "--json", "--prompt-tokens", 16).json
    assert 65e9 < found["parameters"] < 75e9
    assert found["memory"]["stages"][0]["device"] > 2 * found["parameters"]


def test_container_limits_count(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (limit,))
    free = memory.host_bytes()
    limit.write_text("max\n")
    assert memory.host_bytes() == free
    limit.write_text("1048576\n")
    assert memory.host_bytes() == 1048576


@pytest.mark.parametrize(
    ("template", "system", "switch", "inside"), [(QWEN3, False, True, False), (ALWAYS, True, False, True), (None, True, False, False)]
)
def test_templates(tiny, resect, tmp_path, template, system, switch, inside):
    model = tiny("qwen3")
    model.tokenizer.chat_template = template or model.tokenizer.chat_template
    found = resect("inspect", save(model, tmp_path / "model"), "--no-weights", "--json").json["template"]
    assert (found["takes_system_prompt"], found["thinking_switch"], found["ends_inside_thinking"]) == (system, switch, inside)
    assert found["thinking_tags"] == (["<think>", "</think>"] if template else [])
    assert bool(found["prompt_notes"]) == inside
    assert found["final_prompt_position"] == len(model.tokenizer(found["prompt"], add_special_tokens=False)["input_ids"]) - 1


def test_quantised_checkpoints_and_remote_code_are_named_before_loading(resect, folder):
    config(folder, quantization_config={"quant_method": "fp8"}, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    found = resect("inspect", folder, "--no-weights", "--json").json
    assert (found["quantisation"], found["asks_for_remote_code"]) == ("fp8", True)
    assert any("is quantised (fp8) and cannot be edited exactly" in note for note in found["notes"])


def test_mistakes(refuses, resect, folder):
    whole = (folder / "config.json").read_text()
    config(folder, num_hidden_layers=7)
    message = f"The configuration of {folder} cannot be read: `num_hidden_layers` (7) must be equal to the number of `layer_types` (2)"
    refuses("inspect", folder, "--no-weights", message=message)
    (folder / "config.json").write_text(whole)
    refuses("inspect", folder, "--prompt-tokens", 0, message="--prompt-tokens must be at least 1, got 0; 128 is usual.")
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    said = resect("inspect", folder, "--no-weights")
    assert said.code == 2
    assert f"The header of {folder / 'model.safetensors'} cannot be read" in said.err
    shutil.rmtree(folder)
    refuses(
        "inspect",
        folder,
        "--no-weights",
        message=f"There is no model folder {folder}; give an existing folder or a Hub id such as owner/name.",
    )
