"""GGUF control vectors: the same numbers as the `gguf` package writes and reads, and no length of a hostile file believed."""

import builtins
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect.control_vectors import load_gguf, load_npy, save_gguf
from resect.errors import UserError

WIDTH = 8


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(name="general.architecture", value="controlvector"):
    return text(name) + struct.pack("<I", 8) + text(value)


def tensor(name="direction.1", *, axes=(WIDTH,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


SOUND = {"entries": (entry(),), "tensors": (tensor(),), "data": np.ones(WIDTH, "<f4")}


def file(*, magic=b"GGUF", version=3, counts=(None, None), alignment=32, **parts):
    """Return a control vector with one direction, in which everything may be something else."""
    entries, tensors, data = ((SOUND | parts)[name] for name in SOUND)
    tensor_count, entry_count = (c if c is not None else len(items) for c, items in zip(counts, (tensors, entries), strict=True))
    head = magic + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data.tobytes()


@pytest.fixture
def load(tmp_path):
    """A function: reads bytes as a control vector."""

    def read(content, **options):
        path = tmp_path / "foreign.gguf"
        path.write_bytes(content)
        return load_gguf(path, **options)

    return read


def vectors(layers=5, seed=0):
    return torch.randn(layers, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_the_package_reads_what_is_written(tmp_path):
    made = vectors()
    assert save_gguf(tmp_path / "v.gguf", made, hint="tiny") == (1, 2, 3, 4)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [t.name for t in reader.tensors] == [f"direction.{n}" for n in range(1, 5)]
    for n, found in enumerate(reader.tensors, start=1):
        assert found.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(found.data, made[n].numpy())
    fields = {name: reader.get_field(name).contents() for name in reader.fields if "." in name and not name.startswith("GGUF")}
    assert fields == {"general.architecture": "controlvector", "controlvector.model_hint": "tiny", "controlvector.layer_count": 4}


def test_what_the_package_writes_is_read(tmp_path):
    """As repeng writes it: layers in falling order, the first left out."""
    made = vectors()
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_array("tags", ["a", "bc"])
    writer.add_array("numbers", [1, 2, 3])
    for layer in (4, 3, 1):
        writer.add_tensor(f"direction.{layer}", made[layer].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_gguf(tmp_path / "v.gguf")
    assert found.shape == (5, 1, WIDTH)
    assert torch.equal(found[[1, 3, 4], 0], made[[1, 3, 4]])
    assert not found[[0, 2]].any()
    assert load_gguf(tmp_path / "v.gguf", layers=7).shape == (7, 1, WIDTH)
    with pytest.raises(UserError, match="holds a direction for layer 4, but the model was said to have 4 layers, 0 to 3"):
        load_gguf(tmp_path / "v.gguf", layers=4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 1000))
def test_twice_there_and_back_is_the_same(tmp_path_factory, layers, width, seed):
    folder = tmp_path_factory.mktemp("gguf")
    made = torch.randn(layers, width, generator=torch.Generator().manual_seed(seed))
    save_gguf(folder / "a.gguf", made, hint="x")
    found = load_gguf(folder / "a.gguf", layers=layers)
    assert torch.equal(found[1:, 0], made[1:])
    assert not found[0].any()
    save_gguf(folder / "b.gguf", found[:, 0], hint="x")
    assert (folder / "a.gguf").read_bytes() == (folder / "b.gguf").read_bytes()


def test_what_cannot_be_written(tmp_path, monkeypatch):
    out = tmp_path / "v.gguf"
    with pytest.raises(UserError, match="no direction above layer 0"):
        save_gguf(out, torch.cat([vectors(1), torch.zeros(3, WIDTH)]), hint="x")
    with pytest.raises(UserError, match="hold NaN or infinity"):
        save_gguf(out, torch.full((3, WIDTH), torch.inf), hint="x")
    real = builtins.__import__

    def without(name, *rest):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the optional package 'gguf', which is not installed; run: pip install 'resect\[gguf\]'"):
        save_gguf(out, vectors(), hint="x")
    assert not out.exists()


def test_the_file_of_these_tests_is_sound(load):
    assert torch.equal(load(file()), torch.cat([torch.zeros(1, 1, WIDTH), torch.ones(1, 1, WIDTH)]))
    aligned = file(entries=(entry(), text("general.alignment") + struct.pack("<II", 4, 64)), alignment=64)
    assert load(aligned).shape == (2, 1, WIDTH)


HUGE = 2**63 - 1
HOSTILE = {
    "empty": (b"", "needs 4 bytes where 0 are left"),
    "other letters": (file(magic=b"GGML"), "does not begin with the letters GGUF"),
    "old version": (file(version=1), "it has version 1"),
    "big-endian": (file(version=3 << 24), "it is big-endian"),
    "no header": (b"GGUF\x03\0\0\0", "needs 8 bytes where 0 are left"),
    "more tensors than bytes": (file(counts=(HUGE, None)), "it holds a tensor|needs"),
    "more entries than bytes": (file(counts=(None, HUGE)), "twice|unknown type|needs"),
    "name past the end": (file(entries=(struct.pack("<Q", HUGE) + b"general",)), f"needs {HUGE} bytes"),
    "text past the end": (file(entries=(text("a") + struct.pack("<IQ", 8, HUGE),)), f"needs {HUGE} bytes"),
    "array past the end": (file(entries=(text("a") + struct.pack("<IIQ", 9, 4, HUGE),)), f"needs {4 * HUGE} bytes"),
    "texts past the end": (file(entries=(text("a") + struct.pack("<IIQ", 9, 8, HUGE),)), "bytes where"),
    "arrays in arrays": (file(entries=(text("a") + struct.pack("<IIQ", 9, 9, 1),)), "an array of the type 9"),
    "unknown value": (file(entries=(text("a") + struct.pack("<I", 77),)), "unknown type 77"),
    "no text": (file(entries=(text(b"\xff\xfe"),)), "utf-8"),
    "entry twice": (file(entries=(entry(), entry())), "'general.architecture' twice"),
    "a model": (file(entries=(entry(value="llama"),)), "architecture is 'llama', not 'controlvector'"),
    "no architecture": (file(entries=()), "architecture is None"),
    "no directions": (file(tensors=()), "holds no directions"),
    "another tensor": (file(tensors=(tensor("blk.0.attn_q.weight"),)), "a tensor 'blk.0.attn_q.weight'"),
    "no number": (file(tensors=(tensor("direction.x"),)), "a tensor 'direction.x'"),
    "two spellings": (file(tensors=(tensor("direction.01"),)), "a tensor 'direction.01'"),
    "layer 0": (file(tensors=(tensor("direction.0"),)), "control vectors begin at layer 1"),
    "a layer far off": (file(tensors=(tensor("direction.99999999"),)), "a tensor 'direction.99999999'"),
    "twice": (file(tensors=(tensor(), tensor())), "direction.1 twice"),
    "two axes": (file(tensors=(tensor(axes=(2, 4)),)), "has 2 axes"),
    "no axes": (file(tensors=(tensor(axes=()),)), "has 0 axes"),
    "half precision": (file(tensors=(tensor(kind=1),)), "type number 1"),
    "quantised": (file(tensors=(tensor(kind=8),)), "type number 8"),
    "no length": (file(tensors=(tensor(axes=(0,)),)), "is empty"),
    "longer than the file": (file(tensors=(tensor(axes=(WIDTH + 1,)),)), "would end at byte"),
    "length of everything": (file(tensors=(tensor(axes=(2**62,)),)), "would end at byte"),
    "data past the end": (file(tensors=(tensor(offset=HUGE),)), "would end at byte"),
    "two widths": (file(tensors=(tensor(), tensor("direction.2", axes=(4,)))), "different widths: 4 and 8"),
    "alignment of 0": (file(entries=(entry(), text("general.alignment") + struct.pack("<II", 4, 0))), "alignment is 0"),
    "alignment of 3": (file(entries=(entry(), text("general.alignment") + struct.pack("<II", 4, 3))), "alignment is 3"),
    "NaN": (file(data=np.full(WIDTH, np.nan, "<f4")), "direction.1 holds NaN or infinity"),
    "infinity": (file(data=np.full(WIDTH, np.inf, "<f4")), "direction.1 holds NaN or infinity"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(load, case):
    content, message = HOSTILE[case]
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as caught:
        load(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 22, "a count was believed"


def test_every_cut_of_a_file_is_refused(load):
    whole = file()
    for end in range(len(whole)):
        with pytest.raises(UserError, match="no control vector that can be read"):
            load(whole[:end])


def test_a_layer_that_would_need_more_than_any_model(load):
    wide = 20_000
    content = file(tensors=(tensor("direction.9999", axes=(wide,)),), data=np.ones(wide, "<f4"))
    with pytest.raises(UserError, match="would need 10000 layers of width 20000, more than any model has"):
        load(content)


def test_files_that_are_no_files_or_too_large(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_gguf(tmp_path)
    path = tmp_path / "model.gguf"
    with path.open("wb") as sparse:
        sparse.truncate((1 << 26) + 1)
    with pytest.raises(UserError, match="larger than 64 MB: this is a model"):
        load_gguf(path)


def test_numpy_files(tmp_path):
    path = tmp_path / "v.npy"
    for shape in ((3, WIDTH), (3, 2, WIDTH)):
        made = np.random.default_rng(0).normal(size=shape)
        np.save(path, made)
        assert np.array_equal(load_npy(path).numpy().reshape(shape), made.astype(np.float32))
    bad = {
        "cannot be read as a NumPy array": np.array([[{}]], dtype=object),
        r"holds int64 of shape \[2, 2\]": np.ones((2, 2), int),
        r"holds float64 of shape \[2\]": np.ones(2),
        r"cannot be read|holds float64 of shape \[0, 2\]": np.ones((0, 2)),
        "holds NaN or infinity": np.full((2, 2), np.nan),
    }
    for message, array in bad.items():
        np.save(path, array, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            load_npy(path)
    np.save(path, np.ones((2, 2)))
    content = path.read_bytes()
    for broken in (
        content[:-8],
        content[:40],
        b"",
        b"PK\x03\x04",
        content.replace(b"(2, 2)", b"(2,2**"),
        content.replace(b"(2, 2)", b"(2,9e9"),
    ):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="cannot be read as a NumPy array"):
            load_npy(path)
    with pytest.raises(UserError, match="cannot be read as a NumPy array"):
        load_npy(tmp_path / "none.npy")
