"""The streaming form: the same model as baking, other bytes nowhere, and a killed run that ends as if it had not been killed."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from resect.edit import copies, disk, output, pieces
from resect.edit import stream as streaming
from resect.edit.bake import bake
from resect.edit.plan import make_plan
from resect.edit.stream import stream
from resect.errors import UserError
from resect.models.load import load_model
from resect.models.writers import find_writers


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Nothing here has to outlast a power cut, and a busy disk takes seconds for every file."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(network):
    return network(input_ids=IDS, use_cache=False).logits


def save(model, folder, *, dtype=torch.float32, size="40KB"):
    model.network.to(dtype).save_pretrained(folder, max_shard_size=size)
    model.tokenizer.save_pretrained(folder)
    return folder


def plan_for(model, *, gamma=1.0, rank=2, preserve="nothing"):
    writers = find_writers(model)
    vectors = torch.randn(len(model.blocks), rank, model.d_model, generator=torch.Generator().manual_seed(1))
    return writers, make_plan(writers, vectors, torch.full((len(model.blocks),), gamma), preserve=preserve)


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def tensors(folder):
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def test_the_streamed_checkpoint_is_the_baked_model(tiny, tmp_path, family):
    model = tiny(family)
    source = save(model, tmp_path / "source")
    writers, plan = plan_for(model, gamma=0.7)
    report = stream(source, plan, tmp_path / "out")
    plain, baked = logits(model.network), bake(model, writers, plan)
    wanted, found = logits(model.network), logits(load_model(tmp_path / "out", device="cpu").network)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert (plain - wanted).norm() > 1e-2 * wanted.norm()
    assert [c.name for c in report.changes] == [c.name for c in baked.changes]
    for ours, theirs in zip(report.changes, baked.changes, strict=True):
        assert ours.change == pytest.approx(theirs.change, rel=1e-4)
        assert ours.left == pytest.approx([0.3] * 2, abs=1e-3)
    assert report.expected == pytest.approx([c.change for c in report.changes], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_writers_change_and_every_dtype_is_kept(tiny, tmp_path, dtype):
    model = tiny("qwen3_moe")
    source = save(model, tmp_path / "source", dtype=dtype)
    _, plan = plan_for(model)
    before = contents(source)
    report = stream(source, plan, tmp_path / "out")
    assert contents(source) == before
    old, new = tensors(source), tensors(tmp_path / "out")
    assert list(old) == list(new)
    assert len(list(source.glob("*.safetensors"))) > 2
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    # Per-expert keys on disk, one fused parameter in the network.
    assert changed == {k for k in old if k.endswith(("o_proj.weight", "down_proj.weight"))}
    assert {v.dtype for v in new.values()} == {dtype}
    for name in (p.name for p in source.glob("*.safetensors")):
        with safe_open(source / name, "pt") as a, safe_open(tmp_path / "out" / name, "pt") as b:
            assert a.metadata() == b.metadata()
    eps = torch.finfo(dtype).eps
    for change, wanted in zip(report.changes, report.expected, strict=True):
        assert change.change == pytest.approx(wanted, abs=eps)
        assert max(change.left) < 4 * eps


def test_side_files_come_along_and_other_weights_do_not(tiny, tmp_path):
    source = save(tiny("qwen3"), tmp_path / "source")
    (source / "preprocessor_config.json").write_text('{"size": 1}')
    (source / "README.md").write_text("the base")
    (source / "edit_proof.json").write_text('{"of": "another edit"}')
    for name in ("consolidated.safetensors", "pytorch_model.bin", "modeling.py", "other.safetensors.index.json"):
        (source / name).write_bytes(b"{}")
    stream(source, plan_for(tiny("qwen3"))[1], tmp_path / "out", describe=lambda report: {"README.md": f"{len(report.changes)}"})
    given, found = contents(source), contents(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "4"
    unlike = {name for name in given if found.get(name) != given[name]}
    shards_of = {p.name for p in source.glob("model*.safetensors")}
    others = {
        "README.md",
        "edit_proof.json",
        "consolidated.safetensors",
        "pytorch_model.bin",
        "modeling.py",
        "other.safetensors.index.json",
    }
    assert others <= unlike <= others | shards_of
    assert set(found) == set(given) - others | {"README.md"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("preserve", ["column", "row"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_oss"])
def test_kept_norms_are_those_of_baking(tiny, tmp_path, name, preserve):
    model = tiny(name)
    source = save(model, tmp_path / "source", size="1GB")
    writers, plan = plan_for(model, preserve=preserve)
    stream(source, plan, tmp_path / "out")
    bake(model, writers, plan)
    wanted, found = logits(model.network), logits(load_model(tmp_path / "out", device="cpu").network)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_oss", "mixtral"])
def test_slices_change_nothing(tiny, tmp_path, monkeypatch, name):
    model = tiny(name)
    source = save(model, tmp_path / "source")
    _, plan = plan_for(model)
    stream(source, plan, tmp_path / "whole")
    monkeypatch.setattr(pieces, "_TILE", 100)
    monkeypatch.setattr(disk, "_STEP", disk.ALIGN)
    stream(source, plan, tmp_path / "sliced")
    whole, sliced = tensors(tmp_path / "whole"), tensors(tmp_path / "sliced")
    assert all(torch.allclose(whole[key], sliced[key], rtol=0, atol=1e-6) for key in whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", range(1, 8))
def test_a_killed_run_ends_as_if_it_had_not_been(tiny, tmp_path, monkeypatch, when):
    model = tiny("qwen3")
    source = save(model, tmp_path / "source")
    _, plan = plan_for(model)
    before = contents(source)
    count, own, last = [0], disk._write, [-1]

    def dies(file, data, at):
        count[0] += len(data) > 0
        if count[0] == last[0]:
            own(file, data[: len(data) // 2 // disk.ALIGN * disk.ALIGN], at)
            raise Killed
        own(file, data, at)

    monkeypatch.setattr(disk, "_STEP", 4 * disk.ALIGN)
    monkeypatch.setattr(disk, "_write", dies)
    stream(source, plan, tmp_path / "straight")
    count[0], last[0] = 0, count[0] * when // 7
    with pytest.raises(Killed):
        stream(source, plan, tmp_path / "out")
    monkeypatch.setattr(disk, "_write", own)
    assert not (tmp_path / "out").exists()
    partial = tmp_path / ".out.partial"
    for path in partial.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "straight" / path.name).read_bytes()
    finished, written = {p.name for p in partial.glob("*.safetensors")}, []
    monkeypatch.setattr(copies, "copy", lambda path, *rest: written.append(path.name) or disk.copy(path, *rest))
    stream(source, plan, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert contents(source) == before
    # The last one may lack its journal.
    assert len(finished & set(written)) <= 1


def leftover(tmp_path, tiny, monkeypatch, *, spoil):
    """A run that dies after its shards are written, whose leftovers are then spoilt; and the finished one."""
    source = save(tiny("qwen3"), tmp_path / "source")
    plan = plan_for(tiny("qwen3"))[1]
    stream(source, plan, tmp_path / "straight")

    def dies(*_):
        raise Killed

    own = streaming._side_files
    monkeypatch.setattr(streaming, "_side_files", dies)
    with pytest.raises(Killed):
        stream(source, plan, tmp_path / "out")
    monkeypatch.setattr(streaming, "_side_files", own)
    spoil(tmp_path / ".out.partial")
    return source, plan


def flip(folder):
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


SPOILT = {
    "a bit": flip,
    "every bit": lambda folder: [p.write_bytes(b"\x00" * p.stat().st_size) for p in folder.glob("*.safetensors")],
    "an end": lambda folder: [p.write_bytes(p.read_bytes()[:-3]) for p in folder.glob("*.safetensors")],
    "a journal": lambda folder: [p.write_text("[{") for p in (folder / output.JOURNAL).glob("model*.json")],
    "a job": lambda folder: (folder / output.JOURNAL / output.JOB).write_text("{"),
    "a file too many": lambda folder: (folder / ".x.tmp").write_text("half"),
    "all": lambda folder: shutil.rmtree(folder),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_leftovers_are_written_anew(tiny, tmp_path, monkeypatch, name):
    source, plan = leftover(tmp_path, tiny, monkeypatch, spoil=SPOILT[name])
    stream(source, plan, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_leftovers_of_another_edit_are_not_taken_over(tiny, tmp_path, monkeypatch):
    source, _ = leftover(tmp_path, tiny, monkeypatch, spoil=lambda _: None)
    other = plan_for(tiny("qwen3"), gamma=2.0)[1]
    stream(source, other, tmp_path / "out")
    stream(source, other, tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again") != contents(tmp_path / "straight")


def refused(tmp_path, source, plan, message, *, out="out"):
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        stream(source, plan, tmp_path / out)
    assert "\n" not in str(caught.value)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not (tmp_path / ".out.partial").exists()


@pytest.fixture
def source(tiny, tmp_path):
    """A folder with one file of weights, and a plan for it."""
    return save(tiny("qwen3"), tmp_path / "source", size="1GB"), plan_for(tiny("qwen3"))[1]


@pytest.mark.parametrize("out", ["source", "source/out", "."])
def test_never_in_place(source, tmp_path, out):
    refused(tmp_path, *source, "not empty|lie in one another", out=out)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [0, 1])
def test_weights_that_are_not_finite(source, tmp_path, value, layer):
    found = load_file(source[0] / "model.safetensors")
    found[f"model.layers.{layer}.mlp.down_proj.weight"][3, 3] = value
    save_file(found, source[0] / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, *source, r"mlp.down_proj.weight .* holds NaN or infinity")


def test_an_edit_that_overflows_half_precision(tiny, tmp_path):
    source = save(tiny("qwen3"), tmp_path / "source", dtype=torch.float16, size="1GB")
    found = load_file(source / "model.safetensors")
    found["model.layers.1.mlp.down_proj.weight"].fill_(6e4)
    save_file(found, source / "model.safetensors", metadata={"format": "pt"})
    vectors = torch.zeros(2, 1, 32)
    vectors[:, 0, :2] = torch.tensor([1.0, -1.0])
    found["model.layers.1.mlp.down_proj.weight"][0] = -6e4
    found["model.layers.1.mlp.down_proj.weight"][1] = 6e4
    save_file(found, source / "model.safetensors", metadata={"format": "pt"})
    plan = make_plan(find_writers(tiny("qwen3")), vectors, torch.full((2,), 4.0))
    refused(tmp_path, source, plan, r"model.layers.1.mlp.down_proj.weight .* would hold, once edited, NaN or infinity")


def test_a_plan_for_another_model(source, tiny, tmp_path):
    refused(tmp_path, source[0], plan_for(tiny("gpt2"))[1], "The edit names 4 writers that this model lacks")


@pytest.mark.parametrize("drop", ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_a_writer_that_is_not_stored(source, tmp_path, drop):
    found = load_file(source[0] / "model.safetensors")
    found.pop(drop)
    save_file(found, source[0] / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, *source, f"Parameter {drop} of Qwen3ForCausalLM comes from no tensor")


def test_a_writer_of_another_shape(source, tmp_path):
    found = load_file(source[0] / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    found[name] = found[name].T.contiguous()
    save_file(found, source[0] / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, *source, rf"Parameter {name} must have shape \(32, 40\)")


def test_an_expert_that_is_not_stored(tiny, tmp_path):
    source = save(tiny("mixtral"), tmp_path / "source", size="1GB")
    found = load_file(source / "model.safetensors")
    key = next(k for k in found if "layers.1" in k and ".2." in k and k.endswith("w2.weight"))
    found.pop(key)
    save_file(found, source / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, source, plan_for(tiny("mixtral"))[1], r"model.layers.1.mlp.experts.down_proj must have shape \(4, 32, 40\)")


def configured(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_code_that_comes_with_a_model_never_runs(source, tmp_path):
    (source[0] / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    configured(source[0], model_type="unheard_of", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"})
    refused(tmp_path, *source, "configuration of .* cannot be read")


def test_a_full_disk_keeps_what_was_written(source, tmp_path, monkeypatch):
    own = streaming.overwrite

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming, "overwrite", full)
    with pytest.raises(UserError, match="No space left on device; free some space and give the same command again"):
        stream(*source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(streaming, "overwrite", own)
    stream(*source, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}
