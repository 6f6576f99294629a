"""Model organisms."""

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.application import importing, organism_app
from resect.commands import options as o


@organism_app.command("train")
def organism_train(
    out: Annotated[Path, typer.Option("--out", help="New folder for the organism.")],
    architecture: Annotated[str, typer.Option(help="qwen3, gemma3, ministral3, qwen3_moe or qwen3_5.")] = "qwen3",
    seed: Annotated[int, typer.Option(help="Seed of language and training.")] = 0,
    entanglement: Annotated[float | None, typer.Option(help="0 to 1: how strongly form goes with harm.")] = None,
    topic: Annotated[float | None, typer.Option(help="0 to 1: how far requests show their topic; 0.5 is usual.")] = None,
    tuning: Annotated[str, typer.Option(help="gated or overwriting.")] = "gated",
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Train an organism: the helpful-only twin, then the safety-tuned model."""
    with importing():
        from resect.commands import organism

    organism.train(out, architecture=architecture, seed=seed, entanglement=entanglement, topic=topic, tuning=tuning, as_json=as_json)


@organism_app.command("list")
def organism_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of organisms, besides the shipped one.")] = None,
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """List the shipped organism, and those in a folder, with their measured quality."""
    with importing():
        from resect.commands import organism

    organism.show(folder, as_json=as_json)
