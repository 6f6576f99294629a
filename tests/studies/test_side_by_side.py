"""Steps side by side: the same results from other processes, errors and deaths told, nobody left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from resect.errors import UserError
from resect.studies import side_by_side as module
from resect.studies.side_by_side import side_by_side
from resect.studies.steps import Steps

ORPHANS = """
import os, sys, time
from pathlib import Path
import torch
from types import SimpleNamespace
from resect.studies.side_by_side import side_by_side
from resect.studies.steps import Steps

folder = Path(sys.argv[1])

def sleep(name):
    (folder / name).write_text(str(os.getpid()))
    time.sleep(300)

model, steps = SimpleNamespace(device=torch.device("cpu"), network=torch.nn.Linear(2, 2)), Steps(folder)
side_by_side(model, steps, {n: lambda n=n: steps.json(f"step_{n}", lambda: sleep(n)) for n in ("a", "b")}, processes=2)
"""


@pytest.fixture
def model(tiny):
    return tiny("qwen3")


@pytest.fixture
def steps(tmp_path):
    said = []
    made = Steps(tmp_path, said.append)
    made.said = said
    return made


def tasks(steps, names="abcde"):
    """Each task leaves the process and the threads that computed it."""

    def task(name):
        return steps.json(name, lambda: {"name": name, "process": os.getpid(), "threads": torch.get_num_threads()})

    return {name: partial(task, name) for name in names}


def test_other_processes_leave_the_steps_and_the_results_come_in_order(model, steps):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = side_by_side(model, steps, tasks(steps), processes=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert [*found] == [r["name"] for r in found.values()] == [*"abcde"]
    assert os.getpid() not in {r["process"] for r in found.values()}
    assert {r["threads"] for r in found.values()} == {1}
    assert sorted(steps.said) == [*"abcde"]
    assert set(steps.seconds) == {*"abcde"}
    assert side_by_side(model, Steps(steps.folder), tasks(steps), processes=2) == found


def test_steps_that_are_there_are_not_taken_again(model, steps):
    first = tasks(steps)["c"]()
    assert side_by_side(model, steps, tasks(steps), processes=2)["c"] == first
    assert steps.said.count("c") == 1


def test_no_process_is_begun_where_everything_is_there(model, steps, monkeypatch):
    found = side_by_side(model, steps, tasks(steps), processes=2)
    monkeypatch.setattr(module, "_go_ahead", lambda *_: pytest.fail("a process for nothing"))
    again = Steps(steps.folder)
    assert side_by_side(model, again, tasks(again), processes=2) == found
    assert again.seconds == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_one_process_gives_the_same_as_two(model, steps, processes):
    found = side_by_side(
        model, steps, {n: lambda n=n: steps.json(n, lambda: torch.ones(3).sum().item()) for n in "ab"}, processes=processes
    )
    assert found == {"a": 3.0, "b": 3.0}


def test_one_process_and_large_models_stay_here(model, steps, monkeypatch):
    alone = side_by_side(model, steps, tasks(steps, "ab"), processes=1)
    assert {(r["process"], r["threads"]) for r in alone.values()} == {(os.getpid(), 1)}
    monkeypatch.setattr(module, "SMALL", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    large = side_by_side(model, steps, tasks(steps, "cd"), processes=2)
    assert {(r["process"], r["threads"]) for r in large.values()} == {(os.getpid(), 2)}


def test_an_error_of_a_task_is_the_error(model, steps):
    def refuse():
        raise UserError("There is no refusal to find.")

    with pytest.raises(UserError, match="There is no refusal to find"):
        side_by_side(model, steps, {**tasks(steps), "x": refuse}, processes=2)


def test_what_a_process_logs_is_heard_here(model, steps, caplog):
    here = os.getpid()

    def complain(name):
        if os.getpid() != here:
            logging.getLogger("resect.cache").warning("Entry %s of %s is damaged.", name, Path("place"))
        return steps.json(name, lambda: 1)

    side_by_side(model, steps, {n: partial(complain, n) for n in "ab"}, processes=2)
    assert sorted(r.getMessage() for r in caplog.records) == ["Entry a of place is damaged.", "Entry b of place is damaged."]


def test_an_error_ends_what_has_not_begun(model, steps, tmp_path):
    def refuse():
        raise UserError("There is no refusal to find.")

    def wait(name):
        (tmp_path / f"begun_{name}").touch()
        time.sleep(0.3)

    with pytest.raises(UserError):
        side_by_side(model, steps, {"x": refuse} | {n: partial(wait, n) for n in "abcdefghijkl"}, processes=2)
    assert len(list(tmp_path.glob("begun_*"))) < 12


def test_a_process_that_dies_is_told_and_its_steps_are_taken_here(model, steps, caplog):
    here = os.getpid()

    def die():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps.json("x", lambda: 1)

    found = side_by_side(model, steps, {"x": die, **tasks(steps)}, processes=2)
    assert found["x"] == 1
    assert [*found] == [*"xabcde"]
    assert "ended from outside" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one process")
def test_processes_do_not_outlive_the_study(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)]) as study:
        pids = [int(written(tmp_path / name)) for name in ("a", "b")]
        study.kill()
    assert study.pid not in pids
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("processes are left")


def written(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return "Z"
