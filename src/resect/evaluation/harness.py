"""Benchmarks of lm-evaluation-harness on a model as it is now: an edit put on by hooks is measured without a merged checkpoint."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from resect.errors import UserError, missing_extra
from resect.models.load import ChatModel


@dataclass(frozen=True)
class TaskScores:
    """One task: for each of its metrics the score of every document, in the order of the task."""

    scores: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as lists."""
        return {name: list(values) for name, values in self.scores.items()}


def run_tasks(
    model: ChatModel,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat: bool = True,
) -> dict[str, TaskScores]:
    """Return the scores of each task, document by document; `folder` holds task files of your own beside those of the harness.

    The network that is handed over is this very one, hooks and all. `limit` takes the first documents of each task only. `chat` puts the
    documents into the model's chat template.

    Raises: UserError for the missing package, a task that is not there, data that cannot be read, and a task without a metric a document.
    """
    try:
        harness, models, listed = (import_module(f"lm_eval{part}") for part in ("", ".models.huggingface", ".tasks"))
    except ImportError as error:
        raise missing_extra("lm-eval", "bench") from error
    for name in ("lm_eval", "lm-eval", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    manager = _manager(listed, tasks, folder)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        where = f" nor in {folder}" if folder else ""
        raise UserError(f"There is no task {unknown[0]!r} in lm-evaluation-harness{where}; list its tasks with: lm-eval ls tasks")
    network: Any = model.network
    harnessed = models.HFLM(pretrained=network, tokenizer=model.tokenizer, batch_size=batch_size, device=str(model.device))
    options: dict[str, Any] = {"limit": limit, "bootstrap_iters": 0, "log_samples": True, "apply_chat_template": chat}
    try:
        found: Any = harness.simple_evaluate(harnessed, tasks=list(tasks), task_manager=manager, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The tasks {', '.join(tasks)} cannot be run: {line}; their data must be on this machine or on the Hub.") from error
    return {name: _scores(name, samples) for name, samples in found["samples"].items()}


def _manager(listed: Any, tasks: Sequence[str], folder: Path | None) -> Any:
    """Return the harness's list of tasks: the folder's alone if it has them all, since reading the thousands shipped takes seconds."""
    if folder is not None:
        own = listed.TaskManager(include_path=str(folder), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    return listed.TaskManager(include_path=None if folder is None else str(folder))


def _scores(name: str, samples: Sequence[Mapping[str, Any]]) -> TaskScores:
    """Return every metric that has one finite number a document."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    metrics = dict.fromkeys(metric for sample in ordered for metric in sample["metrics"])
    scores = {metric: tuple(float(s[metric]) for s in ordered) for metric in metrics if all(_is_number(s.get(metric)) for s in ordered)}
    if not scores:
        raise UserError(f"Task {name!r} has no metric with one number a document ({', '.join(metrics) or 'none'}), so it has no interval.")
    return TaskScores(scores)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
