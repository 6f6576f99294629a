"""A study stage by stage; each starts from the files of the one before."""

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.application import app, importing
from resect.commands import options as o


@app.command()
def activations(  # noqa: PLR0913
    model: o.Model,
    harmful: o.Harmful = None,
    harmless: o.Harmless = None,
    atoms: o.Atoms = [],  # noqa: B006
    questions: o.Questions = [],  # noqa: B006
    text: o.Text = None,
    out: o.Out = Path("runs/sra"),
    config: o.Config = None,
    settings: o.Set = [],  # noqa: B006
    seed: o.Seed = None,
    position: o.Position = None,
    no_filter: o.NoFilter = False,  # noqa: FBT002
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Stage 1: observe the base model and capture activations into a run folder."""
    with importing():
        from resect.commands import stages, study
        from resect.commands.inputs import Sources

    named = {"seed": seed, "position": study.position(position), "filter_by_behaviour": False if no_filter else None}
    sources = Sources(model, harmful, harmless, tuple(atoms), tuple(questions), text, dtype, revision)
    given = study.collect(config, settings, named)
    stages.activations(sources, given, out=out, device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)


@app.command()
def directions(run: o.Run, as_json: o.Json = False) -> None:  # noqa: FBT002
    """Stage 2: the raw refusal direction from a run's activations."""
    with importing():
        from resect.commands import stages

    stages.directions(run, as_json=as_json)


@app.command()
def cleaning(
    run: o.Run,
    method: Annotated[str, typer.Option(help="sra, projected, whitened, combined, random_atoms or none.")] = "sra",
    lam: Annotated[float | None, typer.Option(help="Lambda (of covariances: shrinkage); unset takes the run's middle one.")] = None,
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Stage 3: clean the direction of what must be kept."""
    with importing():
        from resect.commands import stages

    stages.cleaning(run, method=method, lam=lam, as_json=as_json)


@app.command()
def edit(  # noqa: PLR0913
    run: o.Run,
    strength: Annotated[float | None, typer.Option(help="Peak strength; 1 removes, 2 reflects; unset lets validation choose.")] = None,
    source: Annotated[str | None, typer.Option(help="per_layer, or the layer whose direction is used everywhere.")] = None,
    window: Annotated[str | None, typer.Option(help="Edited layers as FIRST-LAST.")] = None,
    arm: Annotated[str | None, typer.Option(help="Take this arm of the study in place of the cleaned direction.")] = None,
    device: o.Device = "auto",
    trust: o.Trust = False,  # noqa: FBT002
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Stage 4: make the edit; what is not given is chosen on validation."""
    with importing():
        from resect.commands import edits, stages

    fixed = stages.Fixed(strength, edits.source(source), edits.layers(window, option="--window"))
    stages.edit(run, arm=arm, fixed=fixed, device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)


@app.command()
def report(run: o.Run) -> None:
    """Build report.html of a finished study again."""
    with importing():
        from resect.commands import stages

    stages.report(run)
