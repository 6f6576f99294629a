import errno
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resect import artifacts
from resect.artifacts import load_tensors, read_json, save_tensors, write_json, write_text
from resect.errors import UserError

FORMAT = "resect.directions/1"
HEADER = {"format": FORMAT, "position": "last", "counts": {"b": 2, "a": 1}, "score": 0.1, "none": None, "name": "é"}


def tensors():
    generator = torch.Generator().manual_seed(0)
    dtypes = {"vectors": torch.float32, "half": torch.bfloat16, "wide": torch.float64}
    made = {name: torch.randn(3, 2, 4, generator=generator).to(dtype) for name, dtype in dtypes.items()}
    return made | {"layers": torch.arange(3), "kept": torch.tensor([True, False])}


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "new" / "folder" / "d.safetensors"
    save_tensors(path, tensors(), HEADER)
    loaded, header = load_tensors(path, format=FORMAT, axes={"vectors": 3, "layers": 1})
    assert header == HEADER
    assert loaded.keys() == tensors().keys()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors().items())


def test_bytes_depend_on_the_values_only(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_tensors(first, tensors(), HEADER)
    turned = {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in reversed(tensors().items())}
    save_tensors(second, turned, dict(reversed(HEADER.items())))
    assert first.read_bytes() == second.read_bytes()
    write_json(first, {"b": 1, "a": {"d": 1, "c": 2}})
    write_json(second, {"a": {"c": 2, "d": 1}, "b": 1})
    assert first.read_bytes() == second.read_bytes() == b'{\n  "a": {\n    "c": 2,\n    "d": 1\n  },\n  "b": 1\n}\n'


def test_files_made_elsewhere_need_a_format_only(tmp_path):
    path = tmp_path / "d.safetensors"
    save_file({"vectors": torch.ones(1, 1, 2)}, path, metadata={"format": FORMAT, "author": "someone"})
    loaded, header = load_tensors(path, format=FORMAT, axes={"vectors": 3})
    assert header == {"format": FORMAT, "author": "someone"}
    assert loaded["vectors"].tolist() == [[[1.0, 1.0]]]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"has the format None, but 'resect.directions/1' is needed"),
        ({"format": "pt"}, r"has the format 'pt'"),
        ({"format": "resect.cleaning/1"}, r"has the format 'resect.cleaning/1'"),
        ({"format": "resect.directions/2"}, r"has version '2' of format resect.directions, and version '1' is read"),
        ({"header": "{"}, r"header of .* is not valid JSON"),
        ({"header": "[]"}, r"header of .* must be a JSON object, found list"),
        ({"header": '{"format": "resect.directions/1", "x": NaN}'}, r"header of .* is not valid JSON \(NaN"),
    ],
)
def test_other_formats_are_refused(tmp_path, metadata, message):
    path = tmp_path / "d.safetensors"
    save_file({"vectors": torch.ones(1, 1, 2)}, path, metadata=metadata)
    with pytest.raises(UserError, match=message):
        load_tensors(path, format=FORMAT)


def test_layout_is_checked(tmp_path):
    path = tmp_path / "d.safetensors"
    save_file({"vectors": torch.ones(2, 2), "empty": torch.ones(0, 2)}, path, metadata={"format": FORMAT})
    for axes, message in (
        ({"vectors": 3}, r"Tensor 'vectors' of .* must have 3 axes, none of them empty, found shape \[2, 2\]"),
        ({"empty": 2}, r"found shape \[0, 2\]"),
        ({"rows": 2}, r"has no tensor 'rows'; it has empty, vectors"),
    ):
        with pytest.raises(UserError, match=message):
            load_tensors(path, format=FORMAT, axes=axes)
    save_file({"vectors": torch.ones(2, 2).to(torch.float8_e4m3fn)}, path, metadata={"format": FORMAT})
    with pytest.raises(UserError, match=r"Tensor 'vectors' of .* has dtype F8_E4M3; allowed are F64"):
        load_tensors(path, format=FORMAT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_by_name_both_ways(tmp_path, bad):
    path = tmp_path / "d.safetensors"
    values = {"good": torch.ones(2), "broken": torch.tensor([1.0, bad])}
    with pytest.raises(UserError, match=r"Tensor 'broken' of .* holds NaN or infinity in 1 of 2 values"):
        save_tensors(path, values, HEADER)
    assert not path.exists()
    save_file(values, path, metadata={"format": FORMAT})
    with pytest.raises(UserError, match=r"Tensor 'broken'"):
        load_tensors(path, format=FORMAT)


def test_missing_truncated_and_pickled_files(tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(UserError, match=r"There is no file .* \(nothing is there\)"):
        load_tensors(path, format=FORMAT)
    with pytest.raises(UserError, match=r"\(it is a folder\)"):
        load_tensors(tmp_path, format=FORMAT)
    save_tensors(path, tensors(), HEADER)
    for content in (path.read_bytes()[:-8], b"", pickle.dumps({"vectors": 1}), (2**62).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read as safetensors") as caught:
            load_tensors(path, format=FORMAT)
        assert "\n" not in str(caught.value)


def test_a_header_needs_a_format(tmp_path):
    with pytest.raises(ValueError, match=r"needs a 'format'"):
        save_tensors(tmp_path / "d.safetensors", {}, {})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_never_holds_nan(tmp_path, bad):
    path = tmp_path / "e.json"
    with pytest.raises(ValueError, match=r"arms\.sra\[1\]\.value is (nan|inf), which JSON cannot hold"):
        write_json(path, {"arms": {"sra": [{"value": 1.0}, {"value": bad}]}})
    assert list(tmp_path.iterdir()) == []
    path.write_text(json.dumps({"value": bad}))
    with pytest.raises(UserError, match=r"cannot be read as JSON: (NaN|Infinity) is not a number"):
        read_json(path)


def test_json_round_trip_and_errors(tmp_path):
    path = tmp_path / "e.json"
    data = {"format": "resect.evaluation/1", "arms": {"é": {"value": 0.1, "n": 3, "low": None}}, "list": [1, True, "x"]}
    write_json(path, data)
    assert read_json(path) == data
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(UserError, match=r"e.json, line 2: not valid JSON"):
        read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(UserError, match=r"cannot be read as JSON"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"cannot be read as JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"There is no file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, step):
    path = tmp_path / "e.json"
    write_json(path, {"old": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    for attempt in (
        lambda: write_json(path, {"new": 2}),
        lambda: save_tensors(path, tensors(), HEADER),
        lambda: write_text(path, "new"),
    ):
        with pytest.raises(UserError, match=r"e.json cannot be written: No space left on device; free some space or choose another"):
            attempt()
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]


def test_a_write_that_the_kernel_stops_half_way_leaves_nothing(tmp_path):
    """A limit on file size is the nearest thing to a full disk that a test can have for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"e.json cannot be written: File too large"):
            write_text(tmp_path / "e.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_and_a_file_as_folder(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"taken cannot be written"):
        write_text(tmp_path / "taken", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written"):
        write_text(tmp_path / "file" / "below", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]


def test_a_bug_while_writing_leaves_no_rest(tmp_path):
    def fill(file):
        file.write(b"half")
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        artifacts._write(tmp_path / "e.json", fill)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_the_same_in_another_process(tmp_path):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    values = {"b": torch.arange(4.0), "a": torch.arange(3)}
    save_tensors(here, values, HEADER)
    code = (
        "import json, sys, torch; from pathlib import Path; from resect.artifacts import save_tensors;"
        "save_tensors(Path(sys.argv[1]), {'a': torch.arange(3), 'b': torch.arange(4.0)}, json.loads(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(there), json.dumps(HEADER)], check=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    assert here.read_bytes() == there.read_bytes()
