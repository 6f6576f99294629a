"""Everything the terminal shows: the one place that prints."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line to standard output."""
    out.print(text, markup=False)


def show(thing: object) -> None:
    """Print a rich renderable, such as a table."""
    out.print(thing)


def show_json(data: Any) -> None:
    """Print JSON and nothing else."""
    out.print(json.dumps(data, indent=2, sort_keys=True), markup=False)


def quiet_libraries() -> None:
    """Switch off the progress bars of the libraries underneath: the study has its own."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a callback that is told each step as it begins: a bar with time left on a terminal, plain lines elsewhere."""
    if not err.is_terminal:
        yield lambda step: err.print(f"{title}: {step}", markup=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def step(name: str) -> None:
            bar.update(task, description=f"{title}: {name}", advance=1)

        yield step
        bar.update(task, completed=total)
