"""The command line. Heavy imports live inside the commands, so that `resect --help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from resect.errors import UserError

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

Out = Annotated[Path, typer.Option("--out", help="Folder for the run; an unfinished run in it is continued.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings (see docs/formats.md).")]
Set = Annotated[list[str], typer.Option("--set", help="One setting as NAME=VALUE, TOML syntax; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    config: Config = None,
    settings: Set = [],  # noqa: B006  typer needs a list
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Run the SRA study on the shipped model organism; needs no network and no files."""
    from resect.commands import study

    study.run_on_organism("default", out=out, settings=study.collect(config, settings, {}), as_json=as_json)


@app.command()
def sra(  # noqa: PLR0913  one parameter per option
    model: Annotated[str, typer.Argument(help="Local folder, Hub id, or organism folder.")],
    harmful: Annotated[str | None, typer.Option(help="Prompts it refuses: jsonl, csv, parquet, txt, owner/name:split:column.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Prompts that the model answers.")] = None,
    atoms: Annotated[list[Path], typer.Option(help="Atom file or folder; unset uses the shipped registry.")] = [],  # noqa: B006
    questions: Annotated[list[str], typer.Option(help="Question-answer file for perplexity, NAME=PATH or PATH; may be repeated.")] = [],  # noqa: B006
    text: Annotated[str | None, typer.Option(help="Plain-text file for perplexity.")] = None,
    out: Out = Path("runs/sra"),
    config: Config = None,
    settings: Set = [],  # noqa: B006
    lam: Annotated[float | None, typer.Option(help="Ridge lambda of the cleaning; unset lets validation choose.")] = None,
    passes: Annotated[int | None, typer.Option(help="Most passes with hard negatives.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, controls and bootstraps.")] = None,
    position: Annotated[str | None, typer.Option(help="last, last_user, mean or a negative integer.")] = None,
    no_filter: Annotated[bool, typer.Option("--no-filter", help="Extract from all prompts, whatever the base does with them.")] = False,  # noqa: FBT002
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Store prompts and responses in samples.jsonl.")] = False,  # noqa: FBT002
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps ...")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")] = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Run the surgical refusal ablation study with its controls on a chat model."""
    from resect.commands import study

    named: dict[str, Any] = {"lams": None if lam is None else [lam], "passes": passes, "seed": seed, "position": study.position(position)}
    named |= {"filter_by_behaviour": False if no_filter else None, "keep_text": True if keep_text else None}
    resolved = study.collect(config, settings, named)
    if study.is_organism(Path(model)):
        study.refuse_prompt_files(harmful, harmless)
        study.run_on_organism(model, out=out, settings=resolved, as_json=as_json)
        return
    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust_remote_code}
    files = study.Files(harmful=harmful, harmless=harmless, atoms=tuple(atoms), questions=tuple(questions), text=text)
    study.run_on_model(model, files, out=out, settings=resolved, load=load, as_json=as_json)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Build report.html of a run folder again."""
    from resect.commands.console import say
    from resect.report.build import build_report

    say(f"Report: {build_report(run)}")


@organism_app.command("train")
def organism_train(
    out: Annotated[Path, typer.Option("--out", help="New folder for the organism.")],
    architecture: Annotated[str, typer.Option(help="qwen3, gemma3, ministral3, qwen3_moe or qwen3_5.")] = "qwen3",
    seed: Annotated[int, typer.Option(help="Seed of language and training.")] = 0,
    entanglement: Annotated[float | None, typer.Option(help="0 to 1: how strongly form goes with harm.")] = None,
    tuning: Annotated[str, typer.Option(help="gated or overwriting.")] = "gated",
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train an organism: the helpful-only twin, then the safety-tuned model."""
    from resect.commands import organism

    organism.train(out, architecture=architecture, seed=seed, entanglement=entanglement, tuning=tuning, as_json=as_json)


@organism_app.command("list")
def organism_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of organisms, besides the shipped one.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """List the shipped organism, and those in a folder, with their measured quality."""
    from resect.commands import organism

    organism.show(folder, as_json=as_json)


def main() -> None:
    """Run the command line: exit 0 done, 2 user error (one line), 1 bug (traceback)."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        typer.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        typer.echo("Stopped; run the same command again to go on.", err=True)
        sys.exit(130)
    sys.exit(code or 0)
