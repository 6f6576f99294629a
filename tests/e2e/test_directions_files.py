"""Directions files of other makers: converted, read without PyTorch, and refused in one line where they are hostile or do not fit."""

import io
import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from resect import artifacts
from resect.control_vectors import load_gguf
from resect.models.load import load_model

FORMAT = {"format": "resect.directions/1"}
LAYERS, WIDTH = 2, 32
PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A folder of a tiny random model: 2 layers of width 32."""
    built, folder = tiny("qwen3"), tmp_path_factory.mktemp("model") / "tiny"
    built.network.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch):
    """The writers of the one model of this module are found once: every case would find the same."""
    from resect.commands import apply

    found = {}
    real = apply.find_writers
    monkeypatch.setattr(apply, "find_writers", lambda m, **more: found.setdefault(m.fingerprint, real(m, **more)))


def vectors(layers=LAYERS, k=1, seed=0):
    return torch.randn(layers, k, WIDTH, generator=torch.Generator().manual_seed(seed))


def tensors_of(path, **values):
    save_file(values, path, metadata=FORMAT)


def raw(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(shape, size, *, dtype="F32", start=0):
    return {"__metadata__": FORMAT, "vectors": {"dtype": dtype, "shape": shape, "data_offsets": [start, size]}}


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(vectors().tolist()))
    return file.getvalue()


N = LAYERS * WIDTH * 4
BYTES = {
    "empty": (b"", "cannot be read as safetensors: "),
    "text": (b"directions: up, down", "cannot be read as safetensors: "),
    "header past the end": (raw({}, length=1 << 62), "cannot be read as safetensors: "),
    "header that is no JSON": (raw(b"{oops"), "cannot be read as safetensors: "),
    "header that is no object": (raw(b"[1, 2]"), "cannot be read as safetensors: "),
    "deep header": (raw(b"[" * 100_000), "cannot be read as safetensors: "),
    "data cut short": (raw(described([LAYERS, 1, WIDTH], N), bytes(N - 4)), "cannot be read as safetensors: "),
    "data too long": (raw(described([LAYERS, 1, WIDTH], N), bytes(N + 4)), "cannot be read as safetensors: "),
    "shape beyond the data": (raw(described([LAYERS, 1 << 40, WIDTH], N), bytes(N)), "cannot be read as safetensors: "),
    "shape that overflows": (raw(described([1 << 62, 1 << 62, 4], N), bytes(N)), "cannot be read as safetensors: "),
    "negative shape": (raw(described([-2, 1, WIDTH], N), bytes(N)), "cannot be read as safetensors: "),
    "unknown dtype": (raw(described([LAYERS, 1, WIDTH], N, dtype="Q4"), bytes(N)), "cannot be read as safetensors: "),
    "offsets backwards": (raw(described([LAYERS, 1, WIDTH], 0, start=N), bytes(N)), "cannot be read as safetensors: "),
    "zip": (zipped(), "it is a zip file, as torch.save and numpy.savez write it, which can run code when it is read, and is never read; "),
    "pickle": (pickle.dumps([1.0]), "it is a pickle, which can run code when it is read, and is never read; "),
    "GGUF": (b"GGUF" + bytes(60), "it is a GGUF file; a control vector is converted with resect convert."),
    "NumPy": (b"\x93NUMPY" + bytes(60), "it is a NumPy array; it is converted with resect convert."),
}
TENSORS = {
    "no format": ({"vectors": vectors()}, None, "has the format None, but 'resect.directions/1' is needed here"),
    "another format": ({"vectors": vectors()}, {"format": "resect.cleaning/1"}, "has the format 'resect.cleaning/1', but"),
    "a later version": ({"vectors": vectors()}, {"format": "resect.directions/2"}, "has version '2' of format resect.directions, and"),
    "a header that is no JSON": ({"vectors": vectors()}, {"header": "{"}, "The header of "),
    "a header that is a list": ({"vectors": vectors()}, {"header": "[]"}, "must be a JSON object, found list"),
    "another name": ({"directions": vectors()}, FORMAT, "has no tensor 'vectors'; it has directions"),
    "two axes": ({"vectors": vectors()[:, 0].contiguous()}, FORMAT, "must have 3 axes, none of them empty, found shape [2, 32]"),
    "an empty axis": ({"vectors": vectors(k=0)}, FORMAT, "must have 3 axes, none of them empty, found shape [2, 0, 32]"),
    "NaN": ({"vectors": torch.full((LAYERS, 1, WIDTH), torch.nan)}, FORMAT, "holds NaN or infinity in 64 of 64 values"),
    "infinity": ({"vectors": torch.full((LAYERS, 1, WIDTH), torch.inf)}, FORMAT, "holds NaN or infinity in 64 of 64 values"),
    "whole numbers": ({"vectors": torch.ones(LAYERS, 1, WIDTH, dtype=torch.int64)}, FORMAT, "holds torch.int64 values; directions are"),
    "eight bits": ({"vectors": vectors().to(torch.float8_e4m3fn)}, FORMAT, "has dtype F8_E4M3; allowed are F64"),
    "another depth": ({"vectors": vectors(3)}, FORMAT, "holds directions for 3 layers of width 32, but "),
    "another width": ({"vectors": torch.ones(LAYERS, 1, 16)}, FORMAT, "holds directions for 2 layers of width 16, but "),
    "nothing but zeros": (
        {"vectors": torch.zeros(LAYERS, 1, WIDTH)},
        FORMAT,
        "holds nothing but zeros, so there is no direction to remove",
    ),
}


def refused(resect, model, path, message):
    out = path.parent / "out"
    said = resect("apply", model, "--directions", path, "--out", out)
    errors = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert (said.code, said.out, len(errors)) == (2, "", 1), said
    assert "Traceback" not in said.err
    assert message in errors[0]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something was written"


@pytest.mark.parametrize("case", BYTES)
def test_files_that_are_not_what_they_say(resect, model, tmp_path, case):
    content, message = BYTES[case]
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    refused(resect, model, path, message)


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_what_is_needed(resect, model, tmp_path, case):
    values, metadata, message = TENSORS[case]
    path = tmp_path / "mine.safetensors"
    save_file(values, path, metadata=metadata)
    refused(resect, model, path, message)


def test_from_an_array_to_an_edit_and_to_llama_cpp_and_back(resect, model, tmp_path):
    """.npy → directions → GGUF → directions → edited model: the same numbers all along, layer 0 aside."""
    made = vectors()[:, 0].numpy()
    np.save(tmp_path / "mine.npy", made)
    first, vector, second = tmp_path / "a.safetensors", tmp_path / "b.gguf", tmp_path / "c.safetensors"
    said = resect("convert", tmp_path / "mine.npy", "--out", first)
    assert (said.code, said.out) == (0, f"{first}: 2 directions, layers 0-1\n")
    said = resect("convert", first, "--out", vector, "--json")
    assert said.json["layers"] == [1]
    assert said.json["notes"][0] == "Layer 0 is left out: llama.cpp adds nothing after the first block."
    (tensor,) = gguf.GGUFReader(vector).tensors
    assert tensor.name == "direction.1"
    assert np.array_equal(tensor.data, made[1])
    said = resect("convert", vector, "--out", second)
    assert "No direction for layers 0: they are zero, and resect apply leaves them alone." in said.out
    found, header = artifacts.load_tensors(second, format="resect.directions/1", axes={"vectors": 3})
    assert header["method"] == "imported from b.gguf"
    assert torch.equal(found["vectors"][1, 0], torch.from_numpy(made[1]))
    said = resect("apply", model, "--directions", second, "--out", tmp_path / "edited", "--json")
    assert said.code == 0, said.err
    assert "Note: c.safetensors holds no direction for layers 0, which are left alone." in said.err
    old, new = (load_model(folder).network.state_dict() for folder in (model, tmp_path / "edited"))
    unit = torch.from_numpy(made[1] / np.linalg.norm(made[1]))
    for name, before in old.items():
        touched = name.startswith("model.layers.1.") and name.endswith(("o_proj.weight", "down_proj.weight"))
        wanted = before - torch.outer(unit, unit @ before) if touched else before
        assert torch.allclose(new[name], wanted, atol=1e-5), name
        assert torch.equal(new[name], before) != touched, name


def test_layer_n_is_what_llama_cpp_adds_after_block_n(tiny, resect, tmp_path):
    """Adding direction.N to what block N puts out changes our layer N by just that, and no layer before it."""
    from resect.activations import capture
    from resect.models.chat import render

    model = tiny("qwen3")
    made = vectors()
    tensors_of(tmp_path / "a.safetensors", vectors=made)
    assert resect("convert", tmp_path / "a.safetensors", "--out", tmp_path / "b.gguf").code == 0
    (tensor,) = gguf.GGUFReader(tmp_path / "b.gguf").tensors
    block = int(tensor.name.removeprefix("direction."))
    prompts = render(model.tokenizer, ["one", "two"])
    before = capture(model, prompts).rows
    added = torch.from_numpy(np.array(tensor.data))
    handle = model.blocks[block].register_forward_hook(lambda _module, _args, output: output + added)
    after = capture(model, prompts).rows
    handle.remove()
    assert torch.allclose(after[:, block] - before[:, block], made[block, 0].expand(2, -1), atol=1e-5)
    assert torch.equal(after[:, :block], before[:, :block])


def test_a_runs_directions_are_exported(staged, resect, tmp_path):
    for source, file in ((staged[0], "directions"), (staged[0] / "cleaning.safetensors", "cleaning")):
        out = tmp_path / f"{file}.gguf"
        assert resect("convert", source, "--out", out).code == 0
        made = artifacts.load_tensors(staged[0] / f"{file}.safetensors", format=f"resect.{file}/1")[0]["vectors"]
        assert torch.equal(load_gguf(out)[1:], made[1:].float())


def test_several_directions_a_layer_need_a_choice(resect, refuses, tmp_path):
    path, out = tmp_path / "two.safetensors", tmp_path / "two.gguf"
    made = vectors(k=2)
    tensors_of(path, vectors=made)
    refuses(
        "convert",
        path,
        "--out",
        out,
        message=f"{path} holds 2 directions a layer, and a control vector one; choose it with --direction 0 to 1.",
    )
    message = f"Direction 2 does not exist: {path} holds 2 a layer; they go from 0 to 1."
    refuses("convert", path, "--out", out, "--direction", 2, message=message)
    assert not out.exists()
    assert resect("convert", path, "--out", out, "--direction", 1).code == 0
    assert torch.equal(load_gguf(out)[1, 0], made[1, 1])


def test_mistakes_of_convert(refuses, tmp_path):
    source, out = tmp_path / "mine.gguf", tmp_path / "mine.safetensors"
    refuses("convert", source, "--out", out, message=f"There is no file {source}; check the path.")
    source.write_bytes(b"GGUF")
    message = f"{source} is no control vector that can be read: it needs 4 bytes where 0 are left; export it again."
    refuses("convert", source, "--out", out, message=message)
    other = "a run folder or a .safetensors file becomes .gguf, and a .gguf or .npy file becomes .safetensors."
    refuses("convert", source, "--out", tmp_path / "b.gguf", message=f"There is no conversion from .gguf to .gguf; {other}")
    refuses("convert", source, "--out", tmp_path / "b", message=f"There is no conversion from .gguf to b; {other}")
    for ending in (".pt", ".pkl", ".bin", ".npz"):
        path = tmp_path / f"mine{ending}"
        message = (
            f"{path} is a pickle or a zip of them, which can run code when it is read, and is never read; open it where you trust it, and "
            "write one array [layer, d_model] with numpy.save, which resect convert reads."
        )
        refuses("convert", path, "--out", out, message=message)
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    message = f"{tmp_path / 'a.npy'} holds 3 layers, and --layers says 4; leave it out, or give the file of this model."
    refuses("convert", tmp_path / "a.npy", "--out", out, "--layers", 4, message=message)
    refuses("convert", source, "--out", source, message=f"{source} exists, and nothing is overwritten; choose another --out.")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "mine.gguf"]


def examples():
    return [block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL) if "read_directions" in block]


@pytest.mark.parametrize("example", examples(), ids=["safetensors", "plain"])
def test_the_examples_of_the_page_read_what_is_written_without_pytorch(example, tmp_path):
    made = vectors(k=2)
    artifacts.save_tensors(tmp_path / "directions.safetensors", {"vectors": made, "a": torch.ones(3)}, {**FORMAT, "method": "mine"})
    assert "torch" not in example
    scope = {}
    exec(compile(example, "formats.md", "exec"), scope)
    found, header = scope["read_directions"](tmp_path / "directions.safetensors")
    assert found.dtype == np.float32
    assert np.array_equal(found, made.numpy())
    assert header["format"] == FORMAT["format"]
    # And what others write with nothing but the one key.
    save_numpy({"vectors": made.numpy()}, tmp_path / "other.safetensors", metadata=FORMAT)
    found, header = scope["read_directions"](tmp_path / "other.safetensors")
    assert np.array_equal(found, made.numpy())
    assert header["format"] == FORMAT["format"]


def test_there_are_two_examples():
    assert len(examples()) == 2
