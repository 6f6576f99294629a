"""A checkpoint on disk: honest ones are read as safetensors reads them, hostile ones are refused by name before anything is believed."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from resect.errors import UserError
from resect.models.checkpoint import open_checkpoint
from resect.models.files import INDEX, SINGLE

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}


def raw(header, data=b"\x00" * 24, *, length=None):
    """The bytes of a safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def folder(tmp_path):
    """A function: a model folder with these files."""

    def make(files, *, config=b"{}"):
        place = tmp_path / "model"
        place.mkdir(exist_ok=True)
        for name, data in ({"config.json": config} | files).items():
            (place / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return place

    return make


def indexed(weight_map, **metadata):
    return {"metadata": metadata, "weight_map": weight_map}


def test_reads_what_safetensors_reads(folder, tmp_path):
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.randn(4, 2, 2).bfloat16(),
        "half": torch.randn(7).half(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "whole": torch.arange(6),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder({SINGLE: (tmp_path / "x.safetensors").read_bytes()}))
    assert set(checkpoint.tensors) == set(tensors)
    for key, wanted in load_file(tmp_path / "x.safetensors").items():
        assert checkpoint.read(key).dtype == wanted.dtype
        assert torch.equal(checkpoint.read(key), wanted)
    assert torch.equal(checkpoint.read("a", slice(1, 4)), tensors["a"][1:4])
    assert torch.equal(checkpoint.read("b", slice(3, None)), tensors["b"][3:])


def test_shards_are_read_through_the_index(folder, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1")
    save_file({"b": torch.zeros(3)}, tmp_path / "2")
    names = {"m-1.safetensors": (tmp_path / "1").read_bytes(), "m-2.safetensors": (tmp_path / "2").read_bytes()}
    checkpoint = open_checkpoint(folder(names | {INDEX: indexed({"a": "m-1.safetensors", "b": "m-2.safetensors"}, total_size=20)}))
    assert checkpoint.indexed
    assert torch.equal(checkpoint.read("b"), torch.zeros(3))


def test_dtypes_that_are_only_copied_are_located_and_not_read(folder):
    checkpoint = open_checkpoint(folder({SINGLE: raw({"q": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}})}))
    assert checkpoint.tensors["q"].shape == (24,)
    with pytest.raises(UserError, match=r"q of .* has dtype F8_E4M3"):
        checkpoint.read("q")


HEADERS = {
    "overlap": ({"a": A, "b": B | {"data_offsets": [8, 16]}}, "overlaps the tensor before it"),
    "same bytes twice": ({"a": A, "b": A | {"shape": [4]}, "c": B}, "overlaps the tensor before it"),
    "hole": ({"a": A | {"shape": [1, 2], "data_offsets": [0, 8]}, "b": B}, "leaves a hole before it"),
    "hole at the start": ({"b": B}, "leaves a hole before it"),
    "beyond the end": ({"a": A, "b": B | {"shape": [8], "data_offsets": [16, 32]}}, "is cut short"),
    "trailing bytes": ({"a": A}, "has bytes after its last tensor"),
    "end before begin": ({"a": A | {"data_offsets": [16, 0]}, "b": B}, "which are no begin and end"),
    "negative begin": ({"a": A | {"data_offsets": [-16, 0]}, "b": B}, "which are no begin and end"),
    "three offsets": ({"a": A | {"data_offsets": [0, 8, 16]}, "b": B}, "which are no begin and end"),
    "offsets as text": ({"a": A | {"data_offsets": "0-16"}, "b": B}, "which are no begin and end"),
    "offset as fraction": ({"a": A | {"data_offsets": [0, 16.0]}, "b": B}, "which are no begin and end"),
    "offset as truth value": ({"a": A | {"data_offsets": [False, 16]}, "b": B}, "which are no begin and end"),
    "unknown dtype": ({"a": A | {"dtype": "PICKLE"}, "b": B}, "unknown dtype 'PICKLE'"),
    "dtype as list": ({"a": A | {"dtype": ["F32"]}, "b": B}, "unknown dtype"),
    "wrong dtype": ({"a": A | {"dtype": "F64"}, "b": B}, r"shape \[2, 2\] in F64 needs 32"),
    "wrong shape": ({"a": A | {"shape": [2, 3]}, "b": B}, r"has 16 bytes, but shape \[2, 3\] in F32 needs 24"),
    "negative shape": ({"a": A | {"shape": [-2, -2]}, "b": B}, "which is no list of sizes"),
    "overflowing shape": ({"a": A | {"shape": [1 << 33, 1 << 33]}, "b": B}, "which is no list of sizes"),
    "wrapping shape": ({"a": A | {"shape": [1 << 62, 4, 1]}, "b": B}, "which is no list of sizes"),
    "endless shape": ({"a": A | {"shape": [1] * 1000 + [4]}, "b": B}, "which is no list of sizes"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2, 2]}, "b": B}, "is not described by"),
    "further field": ({"a": A | {"code": "x"}, "b": B}, "is not described by"),
    "entry as text": ({"a": "F32", "b": B}, "is not described by"),
    "metadata as list": ({"__metadata__": [1], "a": A, "b": B}, "must map names to texts"),
    "metadata not text": ({"__metadata__": {"x": {}}, "a": A, "b": B}, "must map names to texts"),
    "header as list": ([1, 2], "must be a JSON object, found list"),
    "header not JSON": (b"{'a': 1}", "is not valid JSON"),
    "header not UTF-8": (b'{"\xff\xfe": 1}', "is not valid JSON"),
    "nested bomb": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is nested too deeply"),
    "twin keys": (b'{"a": %s, "a": %s}' % (json.dumps(A).encode(), json.dumps(A).encode()), "'a' stands there twice"),
    "NaN as offset": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}', "which is no list of sizes"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(folder, name):
    header, message = HEADERS[name]
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(folder({SINGLE: raw(header)}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return path.read_bytes()


FILES = {
    "empty": (lambda _: b"", "it is empty"),
    "seven bytes": (lambda _: b"1234567", "it has 7 bytes"),
    "pickle": (lambda _: pickle.dumps({"a": [1.0] * 50}), "it looks like a pickle"),
    "zip": (lambda place: zipped(place / "x.zip"), "it is a zip archive"),
    "LFS pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n", "Git LFS pointer"),
    "giant header": (lambda _: raw({"a": A, "b": B}, length=1 << 62), "a header of 4611686018427387904"),
    "header longer than the file": (lambda _: raw({"a": A, "b": B}, length=10_000), "a header of 10000"),
    "no header": (lambda _: raw(b""), "a header of 0"),
    "cut short": (lambda _: raw({"a": A, "b": B})[:-4], "is cut short"),
    "one byte more": (lambda _: raw({"a": A, "b": B}) + b"\x00", "has bytes after its last tensor"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_safetensors_is_refused(folder, tmp_path, name):
    make, message = FILES[name]
    with pytest.raises(UserError, match=message):
        open_checkpoint(folder({SINGLE: make(tmp_path)}))


GOOD = raw({"a": A, "b": B})
ONE = {"a": "m.safetensors", "b": "m.safetensors"}
INDEXES = {
    "up": (indexed({"a": "../m.safetensors"}), "nothing that leads out of the folder"),
    "absolute": (indexed({"a": "/etc/m.safetensors"}), "nothing that leads out of the folder"),
    "folder inside": (indexed({"a": "x/m.safetensors"}), "nothing that leads out of the folder"),
    "backslash": (indexed({"a": "..\\m.safetensors"}), "nothing that leads out of the folder"),
    "NUL": (indexed({"a": "m\x00.safetensors"}), "nothing that leads out of the folder"),
    "hidden": (indexed({"a": ".safetensors"}), "nothing that leads out of the folder"),
    "other ending": (indexed({"a": "m.bin"}), "a plain name that ends in .safetensors"),
    "endless name": (indexed({"a": "m" * 5000 + ".safetensors"}), "a plain name that ends in .safetensors"),
    "number": (indexed({"a": 7}), "a plain name that ends in .safetensors"),
    "missing shard": (indexed(ONE | {"c": "n.safetensors"}), "has no n.safetensors"),
    "key not in its shard": (indexed(ONE | {"c": "m.safetensors"}), "says that m.safetensors holds 'c', and it does not"),
    "key not in the index": (indexed({"a": "m.safetensors"}), "holds 'b', which .* does not list"),
    "colliding case": (indexed(ONE | {"c": "M.safetensors"}), "one file on some systems"),
    "no weight_map": ({}, "has no weight_map"),
    "empty weight_map": (indexed({}), "has no weight_map"),
    "weight_map as list": ({"weight_map": ["m.safetensors"]}, "has no weight_map"),
    "negative size": (indexed(ONE, total_size=-24), "total_size of -24"),
    "absurd size": (indexed(ONE, total_size=1 << 80), "total_size of 1208925819614629174706176, but its tensors have 24"),
    "size as text": (indexed(ONE, total_size="24"), "total_size of '24'"),
    "list": ([], "must be a JSON object"),
    "no JSON": (b"{", "is not valid JSON"),
    "twin keys": (b'{"weight_map": {"a": "m.safetensors", "a": "n.safetensors"}}', "'a' stands there twice"),
    "bomb": (b"[" * 200_000, "is nested too deeply"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_lies_is_refused(folder, name):
    index, message = INDEXES[name]
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(folder({"m.safetensors": GOOD, INDEX: index}))
    assert "\n" not in str(caught.value)


def test_a_key_in_two_shards_is_refused(folder):
    names = {"m.safetensors": GOOD, "n.safetensors": GOOD}
    with pytest.raises(UserError, match=r"'a' is in m.safetensors and in n.safetensors"):
        open_checkpoint(folder(names | {INDEX: indexed(ONE | {"b": "n.safetensors"})}))


@pytest.mark.parametrize(
    ("config", "message"), [(b"{", "is not valid JSON"), (b"[]", "must be a JSON object"), (b"\xff", "not valid JSON")]
)
def test_a_broken_config_is_refused(folder, config, message):
    with pytest.raises(UserError, match=message):
        open_checkpoint(folder({SINGLE: GOOD}, config=config))


def test_what_is_missing_or_no_file_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="There is no model folder"):
        open_checkpoint(tmp_path / "none")
    place = folder({})
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        open_checkpoint(place)
    (place / SINGLE).mkdir()
    with pytest.raises(UserError, match="no regular file"):
        open_checkpoint(place)
    (place / SINGLE).rmdir()
    os.mkfifo(place / SINGLE)
    with pytest.raises(UserError, match="no regular file"):
        open_checkpoint(place)


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    place = folder({SINGLE: GOOD})
    outside = (place / name).rename(tmp_path / "outside")
    (place / name).symlink_to(outside)
    with pytest.raises(UserError, match="outside the model folder, which is unsafe"):
        open_checkpoint(place)
    (place / name).unlink()
    (place / name).symlink_to(place / "nowhere")
    with pytest.raises(UserError, match="where nothing is"):
        open_checkpoint(place)


def test_links_of_the_hub_cache_are_followed_to_its_own_blobs_only(tmp_path):
    repository, other = tmp_path / "models--o--n", tmp_path / "models--o--other"
    snapshot = repository / "snapshots" / "abc"
    for place in (snapshot, repository / "blobs", other / "blobs"):
        place.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "blobs" / "1").write_bytes(GOOD)
    (other / "blobs" / "1").write_bytes(GOOD)
    (snapshot / SINGLE).symlink_to("../../blobs/1")
    assert set(open_checkpoint(snapshot).tensors) == {"a", "b"}
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to("../../../models--o--other/blobs/1")
    with pytest.raises(UserError, match="outside the model folder"):
        open_checkpoint(snapshot)


def test_a_file_that_shrinks_after_the_check_is_told(folder):
    place = folder({SINGLE: GOOD})
    checkpoint = open_checkpoint(place)
    (place / SINGLE).write_bytes(GOOD[:-20])
    with pytest.raises(UserError, match="ends early"):
        checkpoint.read("a")


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(GOOD) - 25), value=st.integers(0, 255))
def test_one_changed_byte_of_the_header_is_refused_or_harmless(tmp_path_factory, at, value):
    """Whatever a byte of the header becomes: refused by name, or tensors that still fill the file exactly."""
    place = tmp_path_factory.mktemp("model")
    (place / "config.json").write_text("{}")
    data = bytearray(GOOD)
    data[at] = value
    (place / SINGLE).write_bytes(bytes(data))
    try:
        checkpoint = open_checkpoint(place)
    except UserError:
        return
    spans = sorted((t.start, t.stop) for t in checkpoint.tensors.values())
    assert spans[-1][1] == len(GOOD)
    assert sum(stop - start for start, stop in spans) == 24
