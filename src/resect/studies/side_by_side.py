"""Independent steps of a study in several processes: a model of a few million parameters keeps one core busy and leaves the others idle."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from queue import Queue
from typing import Any, TypeVar

import torch

from resect.models.load import ChatModel
from resect.studies.steps import NotKept, Steps

log = logging.getLogger(__name__)
T = TypeVar("T")

SMALL = 100_000_000
"""Parameters up to which steps run side by side, one thread each: a guess, as only organisms were measured (docs/decisions.md). A large
model keeps several threads busy by itself, and its activations are in memory once."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>


def side_by_side(model: ChatModel, steps: Steps, tasks: Mapping[str, Callable[[], T]], *, processes: int = 0) -> dict[str, T]:
    """Return the results of tasks that do not need one another, in their order; all that takes time in them has to be in `steps`.

    Where it pays, processes go ahead and leave finished steps in the run folder, from where the tasks read them back here. A small model
    computes on one thread, in however many processes: the number of cores must not change the last bits of a sum. With `processes` 0 there
    is one a core.

    Raises: what a task raises.
    """
    with threads_of_steps(model):
        # Processes cost a third of a second, and there may be nothing to do for them.
        known = _known(steps, tasks)
        rest = {name: task for name, task in tasks.items() if name not in known}
        count = min(processes or _cores(), len(rest))
        if count > 1 and _is_small(model) and _can_fork():
            _go_ahead(steps, rest, count)
        return {name: known[name] if name in known else task() for name, task in tasks.items()}


def _known(steps: Steps, tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Return the results of the tasks of which every step is finished or in the cache."""
    known = {}
    for name, task in tasks.items():
        with steps.looking(), suppress(NotKept):
            known[name] = task()
    return known


@contextmanager
def threads_of_steps(model: ChatModel) -> Iterator[None]:
    """Compute on one thread inside the `with` block if the model is small, wherever its steps are taken."""
    if not _is_small(model):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_small(model: ChatModel) -> bool:
    return model.device.type == "cpu" and sum(p.numel() for p in model.network.parameters()) <= SMALL


def _go_ahead(steps: Steps, tasks: Mapping[str, Callable[[], object]], count: int) -> None:
    # Forked processes have model, prompts and tasks at once; nothing but names, seconds and log records passes between them.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_begin, initargs=(steps, tasks))
    try:
        with pool, _quiet_fork():
            try:
                for done in as_completed([pool.submit(_compute, name) for name in tasks]):
                    _tell(steps, *done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        log.warning("A process of the study was ended from outside, for want of memory perhaps; going on in one.")


def _tell(steps: Steps, taken: Mapping[str, float], records: list[logging.LogRecord]) -> None:
    for step, seconds in taken.items():
        steps.on_step(step)
        steps.seconds[step] = seconds
    for record in records:
        logging.getLogger(record.name).handle(record)


class _Worker:
    """What a forked process was given, and what it has to say."""

    steps: Steps
    tasks: Mapping[str, Callable[[], object]]
    records: list[logging.LogRecord]


class _Collector(QueueHandler):
    """Keeps records for the parent, which has the terminal to itself."""

    def enqueue(self, record: logging.LogRecord) -> None:
        _Worker.records.append(record)


def _begin(steps: Steps, tasks: Mapping[str, Callable[[], object]]) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent hears it, too, and is the one to say so
    torch.set_num_threads(1)
    steps.on_step = lambda _: None
    logging.getLogger().handlers = [_Collector(Queue())]
    _Worker.steps, _Worker.tasks, _Worker.records = steps, tasks, []


def _compute(name: str) -> tuple[dict[str, float], list[logging.LogRecord]]:
    """Do one task in a forked process and return the seconds of the steps that it took, and what it logged."""
    known, _Worker.records = set(_Worker.steps.seconds), []
    _Worker.tasks[name]()
    return {step: seconds for step, seconds in _Worker.steps.seconds.items() if step not in known}, _Worker.records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _can_fork() -> bool:
    # Elsewhere system libraries do not survive a fork, and neither does an accelerator's context.
    return sys.platform == "linux" and not torch.cuda.is_initialized() and not multiprocessing.current_process().daemon


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Keep tokenizers and Python from warning of forks in general: no thread runs here that a child could wait for."""
    before: Any = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
