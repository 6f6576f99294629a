"""Everything the terminal shows: the one place that prints."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Tables that go to a file or a pipe need not fit a screen.
out = Console(highlight=False, soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """Print a line to standard output."""
    out.print(text, markup=False)


def show(thing: object) -> None:
    """Print a rich renderable, such as a table."""
    out.print(thing)


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the one style of the terminal; names fold and are never cut short."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        made.add_column(Text(column), overflow="fold")
    return made


def warn(text: str) -> None:
    """Print a line to standard error."""
    err.print(f"Note: {text}", markup=False)


def show_json(data: Any, *, lines: bool = False) -> None:
    """Print JSON and nothing else; `lines` puts it on one line, for a stream of them."""
    out.print(json.dumps(data, indent=None if lines else 2, sort_keys=True), markup=False)


def quiet_libraries() -> None:
    """Switch off the progress bars of the libraries underneath: the study has its own."""
    quiet_transformers()
    # Half a second to import, and most commands read no data set.
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    else:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet_transformers() -> None:
    """Switch off the progress bars of transformers alone, where no data sets are read."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _plain(title: str) -> Callable[[str], None]:
    """Return a callback that prints each step once, though it may be told of its parts."""
    last: list[str] = []

    def step(name: str) -> None:
        if name not in last:
            err.print(f"{title}: {name}", markup=False)
        last[:] = [name]

    return step


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a callback that is told each step as it begins: a bar with time left on a terminal, plain lines elsewhere."""
    if not err.is_terminal:
        yield _plain(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def step(name: str) -> None:
            bar.update(task, description=f"{title}: {name}", advance=1)

        yield step
        bar.update(task, completed=total)
