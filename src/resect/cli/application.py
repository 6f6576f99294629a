"""The applications that the commands join, and how a command imports what it needs."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

ORDER = (
    *("demo", "sra", "contrast", "recipe"),
    *("activations", "directions", "cleaning", "edit", "evaluate", "report"),
    *("apply", "convert", "chat", "inspect"),
    *("organism", "cache"),
)
"""The commands as `--help` lists them: from whole studies to single jobs."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in their order."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="resect",
    cls=_InOrder,
    help="Find, clean, ablate and measure refusal directions in language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
organism_app = typer.Typer(help="Model organisms: tiny transformers that learned to refuse, and their twins.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")
cache_app = typer.Typer(help="Results kept from run to run, so that nothing is computed twice.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@contextmanager
def importing() -> Iterator[None]:
    """Import inside the `with` block without collecting garbage: imports make little of it and half a million objects that stay.

    Looking through those again and again took a seventh of the imports' time, and once more at the end, where nothing needs them, a second.
    """
    running = gc.isenabled()
    gc.disable()
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if running:
            gc.enable()
