"""The cache: what goes in comes out, or nothing does. Damage, full and foreign folders, eviction, several processes at once."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resect.cache import Cache, Kept, Key, open_cache
from resect.errors import UserError

VALUE = {"b": [1, 2.5, None], "a": "é"}


def key(n=0):
    return Key(f"{n:064x}", "a model")


def kept(n=0, size=4):
    return Kept({"n": n, **VALUE}, {"rows": torch.full((size,), float(n)), "ids": torch.arange(3)})


def same(a, b):
    return a.value == b.value and set(a.tensors) == set(b.tensors) and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def path(cache, n=0):
    return cache.folder / f"{n:064x}.safetensors"


def age(cache, n, seconds):
    then = time.time() - seconds
    os.utime(path(cache, n), (then, then))


@pytest.mark.parametrize("what", [kept(), Kept([1.5, None]), Kept(tensors={"rows": torch.randn(2, 3, dtype=torch.bfloat16)}), Kept(0)])
def test_what_is_kept_is_found_again(cache, what):
    assert cache.find(key()) is None
    cache.keep(key(), what, step="one")
    assert same(Cache(cache.place).find(key()), what)
    assert cache.find(key(1)) is None


def test_no_flipped_byte_is_believed(cache, caplog):
    what = Kept({"n": 1}, {"rows": torch.tensor([1.0, 2.0])})
    cache.keep(key(), what, step="one")
    whole, detected = path(cache).read_bytes(), 0
    for at in range(len(whole)):
        path(cache).write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        caplog.clear()
        found = cache.find(key())
        assert found is None
        assert not path(cache).exists()
        detected += caplog.messages[0].startswith("An entry of the cache is damaged and made again: ")
    assert detected == len(whole)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_entry_is_made_again(cache, caplog, length):
    cache.keep(key(), kept(), step="one")
    path(cache).write_bytes(path(cache).read_bytes()[:length])
    assert cache.find(key()) is None
    assert "damaged" in caplog.text
    cache.keep(key(), kept(), step="one")
    assert same(cache.find(key()), kept())


def test_an_entry_under_another_name_is_not_believed(cache, caplog):
    cache.keep(key(1), kept(1), step="one")
    path(cache).write_bytes(path(cache, 1).read_bytes())
    assert cache.find(key()) is None
    assert "holds another entry" in caplog.text
    assert same(cache.find(key(1)), kept(1))


def test_a_file_of_another_format_is_not_believed(cache, caplog):
    from resect import artifacts

    artifacts.save_tensors(path(cache), {"rows": torch.ones(2)}, {"format": "resect.step/1", "value": 1})
    assert cache.find(key()) is None
    assert "'resect.kept/1' is needed" in caplog.text


def test_the_least_recently_used_go_first(cache):
    for n in range(4):
        cache.keep(key(n), kept(n), step="one")
    for n in range(4):
        age(cache, n, 100 - n)
    assert cache.find(key(0)) is not None  # now the one used last
    cache.limit = 3 * path(cache).stat().st_size
    cache.keep(key(4), kept(4), step="one")
    assert [cache.find(key(n)) is not None for n in range(5)] == [True, False, False, True, True]
    assert sum(e.size for e in cache.entries()) <= cache.limit


def test_what_is_larger_than_the_limit_is_not_kept_and_costs_no_other(cache):
    cache.keep(key(), kept(), step="one")
    cache.limit = 4000
    cache.keep(key(1), kept(1, size=2000), step="one")
    assert cache.find(key(1)) is None
    assert cache.find(key()) is not None


def test_entries_are_listed_with_step_size_and_age_the_last_used_first(cache):
    for n, step in enumerate(("old", "new")):
        cache.keep(key(n), kept(n), step=step)
    age(cache, 0, 7200)
    path(cache, 2).write_bytes(b"damaged")
    age(cache, 2, 9000)
    listed = cache.entries()
    assert [(e.step, e.model, e.key) for e in listed] == [
        ("new", "a model", key(1).name),
        ("old", "a model", key(0).name),
        (None, None, key(2).name),
    ]
    assert [e.size for e in listed] == [path(cache, n).stat().st_size for n in (1, 0, 2)]
    assert time.time() - listed[1].used == pytest.approx(7200, abs=60)


def test_clearing_removes_entries_and_nothing_else(cache):
    cache.keep(key(), kept(), step="one")
    unfinished = cache.folder / f".{path(cache, 1).name}.77.tmp"
    others = [cache.folder / "notes.txt", cache.place / "model.safetensors", cache.place / "other" / "x.safetensors"]
    for other in (unfinished, *others):
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"12345")
    size = path(cache).stat().st_size
    assert cache.clear() == (2, size + 5)
    assert cache.entries() == ()
    assert not unfinished.exists()
    assert all(other.exists() for other in others)
    assert cache.clear() == (0, 0)


def test_only_unfinished_files_without_a_writer_are_swept(cache):
    cache.keep(key(), kept(), step="one")
    fresh, stale = (cache.folder / f".{path(cache, n).name}.77.tmp" for n in (1, 2))
    for file in (fresh, stale):
        file.write_bytes(b"1")
    os.utime(stale, (time.time() - 7200,) * 2)
    cache.keep(key(3), kept(3), step="one")
    assert (fresh.exists(), stale.exists()) == (True, False)


def test_the_folder_is_its_users_alone(cache):
    before = os.umask(0)
    try:
        cache.keep(key(), kept(), step="one")
    finally:
        os.umask(before)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o755)
    assert Cache(cache.place).find(key()) is not None
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_not_believed(cache, caplog, monkeypatch):
    cache.keep(key(), kept(), step="one")
    monkeypatch.setattr(os, "geteuid", lambda: 123456)
    assert Cache(cache.place).find(key()) is None
    assert "belongs to another user" in caplog.text


@pytest.mark.parametrize("kind", ["a file in the way", "a place where nothing can be made"])
def test_a_folder_that_cannot_be_made_is_told_once_and_costs_nothing_else(tmp_path, caplog, kind):
    place = Path("/proc/resect") if kind.startswith("a place") else tmp_path / "file"
    if kind.startswith("a file"):
        place.write_text("")
    cache = Cache(place)
    for n in range(3):
        assert cache.find(key(n)) is None
        cache.keep(key(n), kept(n), step="one")
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith(f"Going on without the cache in {place}: ")
    assert cache.entries() == ()


FULL = """
import resource, sys, logging
from pathlib import Path
import torch
from resect.cache import Cache, Kept, Key
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # every file ends there, as on a disk that is full
cache = Cache(Path(sys.argv[1]))
small, large = Key("0" * 64, "m"), Key("1" * 64, "m")
cache.keep(small, Kept(1), step="one")
cache.keep(large, Kept(tensors={"rows": torch.ones(5000)}), step="two")
cache.keep(large, Kept(tensors={"rows": torch.ones(5000)}), step="two")
print(cache.find(small), [p.name for p in sorted(cache.folder.iterdir())] == ["0" * 64 + ".safetensors"])
"""


def python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_full_disk_ends_keeping_with_one_warning(tmp_path):
    out, err = python(FULL, tmp_path / "cache").communicate(timeout=120)
    assert out.split() == ["None", "True"]
    assert len(err.splitlines()) == 1
    assert err.startswith("Going on without the cache in ")
    assert "cannot be written" in err


def test_an_entry_that_goes_while_it_is_opened_is_made_again_without_a_word(tmp_path, monkeypatch, caplog):
    cache, key = Cache(tmp_path), Key("0" * 64, "m")
    cache.keep(key, Kept(1, {"rows": torch.ones(3)}), step="one")
    opened = torch.UntypedStorage.from_file

    def gone(*given, **more):
        (cache.folder / f"{key.name}.safetensors").unlink()
        return opened(*given, **more)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", gone)
    assert cache.find(key) is None
    assert not (cache.folder / f"{key.name}.safetensors").exists()
    assert caplog.records == []


MANY = """
import sys
from pathlib import Path
import torch
from resect.cache import Cache, Kept, Key
cache, found, wrong = Cache(Path(sys.argv[1]), limit=int(sys.argv[2])), 0, 0
for turn in range(50):
    for n in range(4):
        kept = cache.find(Key(f"{n:064x}", "m"))
        if kept is None:
            cache.keep(Key(f"{n:064x}", "m"), Kept({"n": n}, {"rows": torch.full((3000,), float(n))}), step="one")
        else:
            found, wrong = found + 1, wrong + (kept.value != {"n": n} or not bool((kept.tensors["rows"] == n).all()))
print(found, wrong)
"""


@pytest.mark.parametrize("room", [2, 10])
def test_processes_that_write_read_and_evict_the_same_entries_do_not_disturb_one_another(tmp_path, room):
    running = [python(MANY, tmp_path / "cache", room * 13000) for _ in range(3)]
    results = [p.communicate(timeout=120) for p in running]
    assert [err for _, err in results] == ["", "", ""]
    counts = [tuple(map(int, out.split())) for out, _ in results]
    assert all(wrong == 0 for _, wrong in counts)
    assert sum(found for found, _ in counts) > 0
    cache = Cache(tmp_path / "cache", limit=room * 13000)
    assert len(cache.entries()) == min(4, room)
    assert not list(cache.folder.glob(".*"))


def test_the_place_and_the_limit_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RESECT_CACHE", str(tmp_path / "mine"))
    assert (open_cache().place, open_cache().limit) == (tmp_path / "mine", 5_000_000_000)
    monkeypatch.setenv("RESECT_CACHE_GB", "0.5")
    assert open_cache().limit == 500_000_000
    monkeypatch.delenv("RESECT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert open_cache().place == tmp_path / "caches" / "resect"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_cache().place == tmp_path / "home" / ".cache" / "resect"
    assert not list(tmp_path.iterdir())  # naming a place makes none


@pytest.mark.parametrize("given", ["0", "-1", "much", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, given):
    monkeypatch.setenv("RESECT_CACHE_GB", given)
    with pytest.raises(UserError, match=f"RESECT_CACHE_GB is '{given}', which is no positive number of gigabytes"):
        open_cache()


def test_what_is_usual_is_not_logged(cache, caplog):
    caplog.set_level(logging.DEBUG)
    cache.keep(key(), kept(), step="one")
    assert cache.find(key()) is not None
    assert cache.find(key(1)) is None
    assert not caplog.records
