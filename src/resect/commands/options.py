"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Local folder, Hub id, organism folder, or default for the shipped organism.")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the run; an unfinished run in it is continued.")]

Harmful = Annotated[str | None, typer.Option(help="Prompts it refuses: jsonl, csv, parquet, txt, owner/name:split:column.")]
Harmless = Annotated[str | None, typer.Option(help="Prompts that the model answers.")]
Atoms = Annotated[list[str], typer.Option(help="Atom file or folder; unset uses the shipped registry; may be repeated.")]
Questions = Annotated[list[str], typer.Option(help="Question-answer file for perplexity, NAME=PATH or PATH; may be repeated.")]
Text = Annotated[str | None, typer.Option(help="Plain-text file for perplexity.")]

Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings (see docs/formats.md).")]
Set = Annotated[list[str], typer.Option("--set", help="One setting as NAME=VALUE, TOML syntax; may be repeated.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, controls and bootstraps.")]
Position = Annotated[str | None, typer.Option(help="last, last_user, mean or a negative integer.")]
NoFilter = Annotated[bool, typer.Option("--no-filter", help="Extract from all prompts, whatever the base does with them.")]

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps ...")]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub model.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep results in the cache (see resect cache list).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
