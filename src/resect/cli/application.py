"""The applications that the commands join."""

import typer

app = typer.Typer(
    name="resect",
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
