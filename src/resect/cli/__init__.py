"""The command line. Heavy imports live inside the commands, so that `resect --help` answers at once."""

import sys
from typing import Any

import typer

from resect.cli import cache, evaluate, models, organism, stages, studies  # noqa: F401  importing joins them to the application
from resect.cli.application import app
from resect.errors import UserError

# Typer brings its own click or uses the installed one; either way its usage errors are what BadParameter comes from.
_ClickError: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line: exit 0 done, 2 user error (one line), 1 bug (traceback)."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (UserError, _ClickError) as error:
        message = str(error) if isinstance(error, UserError) else error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message)
            sys.exit(0)
        typer.echo(f"Error: {' '.join(message.splitlines())}", err=True)
        sys.exit(2)
    except typer.Abort:
        typer.echo("Stopped; run the same command again to go on.", err=True)
        sys.exit(130)
