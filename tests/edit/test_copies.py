"""Copies that begin before the edit: what they may read and write, and that nothing of them stays where the edit is refused."""

import os
import signal
import subprocess
import sys
import time
from errno import EINVAL
from threading import Event

import pytest
import torch
from tests.edit.test_stream import contents, plan_for, save

from resect import artifacts
from resect.edit import disk, output
from resect.edit.copies import Copies, copied_ahead
from resect.edit.stream import stream
from resect.errors import UserError
from resect.models.checkpoint import open_checkpoint


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Nothing here has to outlast a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def source(tiny, tmp_path):
    """A sharded checkpoint, and a plan for it."""
    return save(tiny("qwen3"), tmp_path / "source"), plan_for(tiny("qwen3"))[1]


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_copies_begun_ahead_change_no_byte_of_what_is_written(source, tmp_path):
    stream(*source, tmp_path / "straight")
    before = everything(source[0])
    with copied_ahead(str(source[0]), tmp_path / "out") as copies:
        assert copies is not None
        stream(*source, tmp_path / "out", copies=copies)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert everything(source[0]) == before
    assert {p.name for p in tmp_path.iterdir()} == {"source", "straight", "out"}


def test_only_temporary_names_are_written_to(source, tmp_path):
    with copied_ahead(str(source[0]), tmp_path / "out") as copies:
        assert copies is not None
        for shard in open_checkpoint(source[0]).shards:
            copied, _ = copies.of(shard)
            assert copied.read_bytes() == shard.path.read_bytes()
        found = {p.name for p in (tmp_path / ".out.partial").iterdir()}
        assert found == {f".{p.name}.tmp" for p in source[0].glob("*.safetensors")}
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_nothing_stays_when_the_edit_is_never_begun(source, tmp_path, error):
    before = everything(tmp_path)

    def refused():
        with copied_ahead(str(source[0]), tmp_path / "out") as copies:
            assert copies is not None
            raise error

    with pytest.raises(type(error)):
        refused()
    assert everything(tmp_path) == before


def link_out(folder, tmp_path):
    path = min(folder.glob("*.safetensors"))
    path.rename(tmp_path / "secret.safetensors")
    path.symlink_to(tmp_path / "secret.safetensors")


def name_up(folder, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(min(folder.glob("*.safetensors")).read_bytes())
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(min(folder.glob("*.safetensors")).name, "../secret.safetensors"))


def fifo(folder, _):
    path = min(folder.glob("*.safetensors"))
    path.unlink()
    os.mkfifo(path)


REFUSED = {
    "a link out": link_out,
    "a name that leads out": name_up,
    "a pipe": fifo,
    "a pickle": lambda folder, _: min(folder.glob("*.safetensors")).write_bytes(b"\x80\x04\x95" + b"\x00" * 64),
    "a file cut short": lambda folder, _: os.truncate(min(folder.glob("*.safetensors")), 1000),
    "no config": lambda folder, _: (folder / "config.json").unlink(),
    "an output": lambda _, tmp_path: (tmp_path / "out").write_text("here"),
    "an output that is a link": lambda _, tmp_path: (tmp_path / "out").symlink_to(tmp_path / "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_edit_would_refuse_is_not_copied(source, tmp_path, name):
    REFUSED[name](source[0], tmp_path)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    with copied_ahead(str(source[0]), tmp_path / "out") as copies:
        assert copies is None
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("out", ["source", "source/out", ".", "no/such/folder/out"])
def test_nothing_is_written_where_no_output_may_be_or_no_folder_is(source, tmp_path, out):
    before = everything(tmp_path)
    with copied_ahead(str(source[0]), tmp_path / out) as copies:
        assert copies is None
    assert everything(tmp_path) == before


def test_blobs_of_the_hub_cache_are_copied(source, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in source[0].iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    with copied_ahead(str(snapshot), tmp_path / "out") as copies:
        assert copies is not None
        stream(snapshot, source[1], tmp_path / "out", copies=copies)
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


def test_an_unfinished_edit_with_finished_shards_is_left_to_go_on(source, tmp_path):
    partial = tmp_path / ".out.partial"
    stream(*source, tmp_path / "straight")
    (partial / output.JOURNAL).mkdir(parents=True)
    finished = min((tmp_path / "straight").glob("*.safetensors"))
    (partial / finished.name).write_bytes(finished.read_bytes())
    before = everything(partial)
    with copied_ahead(str(source[0]), tmp_path / "out") as copies:
        assert copies is None
    assert everything(partial) == before


@pytest.mark.parametrize("how", ["written to", "another file"])
def test_a_source_that_changes_between_copy_and_edit_is_noticed(source, tmp_path, how):
    path = max(source[0].glob("*.safetensors"))

    def edited():
        with copied_ahead(str(source[0]), tmp_path / "out") as copies:
            assert copies is not None
            for shard in open_checkpoint(source[0]).shards:
                copies.of(shard)
            data = path.read_bytes()
            if how == "another file":
                path.rename(tmp_path / "old")
            path.write_bytes(data[:-4] + b"abcd")
            stream(*source, tmp_path / "out", copies=copies)

    with pytest.raises(UserError, match="changed while it was copied and edited"):
        edited()
    assert not (tmp_path / ".out.partial").exists()
    assert not (tmp_path / "out").exists()


def test_copies_for_another_output_are_refused(source, tmp_path):
    with copied_ahead(str(source[0]), tmp_path / "out") as copies, pytest.raises(ValueError, match="another output"):
        stream(*source, tmp_path / "other", copies=copies)
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_a_copy_that_was_stopped_is_no_copy(source, tmp_path):
    shards = open_checkpoint(source[0]).shards
    (tmp_path / "partial").mkdir()
    stopped = Event()
    stopped.set()
    with pytest.raises(disk.CancelledError):
        disk.copy(shards[0].path, tmp_path / "partial" / "x", stopped)
    copies = Copies(shards, tmp_path / "partial")
    copies.discard()
    assert not (tmp_path / "partial").exists()


def refusing(monkeypatch, *, at_open):
    own = os.open

    def refuses(path, flags, *rest, **more):
        if flags & os.O_DIRECT and at_open:
            raise OSError(EINVAL, "Invalid argument")
        return own(path, flags, *rest, **more)

    def writes(file, data, at):
        if not at_open and len(data) and file.mode == "rb+" and at % disk.ALIGN == 0 and len(data) % disk.ALIGN == 0 and not tried:
            tried.append(file)
            raise OSError(EINVAL, "Invalid argument")
        write(file, data, at)

    tried, write = [], disk._write
    monkeypatch.setattr(os, "open", refuses)
    monkeypatch.setattr(disk, "_write", writes)
    return tried


@pytest.mark.parametrize("at_open", [True, False])
def test_systems_that_know_only_the_page_cache_get_the_same_bytes(source, tmp_path, monkeypatch, at_open):
    stream(*source, tmp_path / "straight")
    tried = refusing(monkeypatch, at_open=at_open)
    stream(*source, tmp_path / "out")
    assert bool(tried) != at_open
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("start", [0, 1, 8, 4095, 4096, 5000])
@pytest.mark.parametrize("count", [0, 1, 100, 4096, 4097, 20000])
def test_bytes_are_written_at_their_place_and_nowhere_else(tmp_path, start, count):
    old, new = os.urandom(30000), os.urandom(count)
    path = tmp_path / "x"
    path.write_bytes(old)
    memory = disk.mmap(-1, count + disk.ALIGN)
    data = disk.room(memory, count, start)
    data[:] = new
    with disk.Overwritten(path) as file:
        file.write(data, start)
        file.sync()
    wanted = old[:start] + new + old[start + count :]
    assert path.read_bytes() == wanted
    with disk.from_disk(path) as file:
        assert b"".join(map(bytes, disk.chunks(file, start, start + count))) == new
        assert [bytes(part) for part in disk.chunks(file, start, start + count)] == [bytes(part) for part in disk.cut(data, start)]


COMMAND = """
import sys, time
from resect.edit import disk
own = disk._write
def slow(file, data, at):
    time.sleep(0.02 if len(data) else 0)
    own(file, data, at)
disk._write, disk._STEP = slow, disk.ALIGN
from resect.cli import main
main()
"""


def test_a_command_killed_while_it_copies_ahead_ends_as_if_it_had_not_been(source, tmp_path):
    vectors = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    artifacts.save_tensors(tmp_path / "d.safetensors", {"vectors": vectors}, {"format": "resect.directions/1"})

    def command(out, program="from resect.cli import main; main()"):
        return [sys.executable, "-c", program, "apply", source[0], "--directions", tmp_path / "d.safetensors", "--out", tmp_path / out]

    subprocess.run(command("straight"), check=True, capture_output=True)
    before = everything(source[0])
    process = subprocess.Popen(command("out", COMMAND), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".out.partial"
    while not [p for p in partial.glob(".*.tmp") if p.stat().st_size]:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (partial / output.JOURNAL).exists()
    assert not list(partial.glob("*.safetensors"))
    subprocess.run(command("out"), check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert everything(source[0]) == before
    assert {p.name for p in tmp_path.iterdir()} == {"source", "d.safetensors", "straight", "out"}


def test_nothing_heavy_is_imported_before_the_copies_begin():
    program = "import sys; import resect.cli, resect.edit.copies; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
