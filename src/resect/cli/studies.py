"""Whole studies, from prompts to report."""

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.application import app, importing
from resect.commands import options as o

Matched = Annotated[str | None, typer.Option(help="Benign prompts on the same topics: category, and pair_id where paired.")]
Unmatched = Annotated[str | None, typer.Option(help="Benign prompts on any topic.")]


@app.command()
def demo(
    out: o.Out = Path("runs/demo"),
    config: o.Config = None,
    settings: o.Set = [],  # noqa: B006
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Run the SRA study on the shipped model organism; needs no network and no files."""
    with importing():
        from resect.commands import study
        from resect.commands.inputs import Sources
        from resect.organism.shipped import SHIPPED

    study.run_study(Sources(SHIPPED), study.collect(config, settings, {}), out=out, no_cache=no_cache, as_json=as_json)


@app.command()
def sra(  # noqa: PLR0913  one parameter per option
    model: o.Model,
    harmful: o.Harmful = None,
    harmless: o.Harmless = None,
    atoms: o.Atoms = [],  # noqa: B006  typer needs a list
    questions: o.Questions = [],  # noqa: B006
    text: o.Text = None,
    out: o.Out = Path("runs/sra"),
    config: o.Config = None,
    settings: o.Set = [],  # noqa: B006
    lam: Annotated[float | None, typer.Option(help="Ridge lambda of the cleaning; unset lets validation choose.")] = None,
    passes: Annotated[int | None, typer.Option(help="Most passes with hard negatives.")] = None,
    seed: o.Seed = None,
    position: o.Position = None,
    no_filter: o.NoFilter = False,  # noqa: FBT002
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Store prompts and responses in samples.jsonl.")] = False,  # noqa: FBT002
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Run the surgical refusal ablation study with its controls on a chat model."""
    with importing():
        from resect.commands import study
        from resect.commands.inputs import Sources

    named = {"lams": None if lam is None else [lam], "passes": passes, "seed": seed, "position": study.position(position)}
    named |= {"filter_by_behaviour": False if no_filter else None, "keep_text": True if keep_text else None}
    sources = Sources(model, harmful, harmless, tuple(atoms), tuple(questions), text, dtype, revision)
    given = study.collect(config, settings, named)
    study.run_study(sources, given, out=out, device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)


@app.command()
def contrast(  # noqa: PLR0913  one parameter per option
    model: o.Model,
    harmful: o.Harmful = None,
    matched: Matched = None,
    unmatched: Unmatched = None,
    out: o.Out = Path("runs/contrast"),
    config: o.Config = None,
    settings: o.Set = [],  # noqa: B006
    quick: Annotated[bool, typer.Option("--quick", help="The same questions with fewer arms and doses.")] = False,  # noqa: FBT002
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
    """Find out whether topic-matched contrast fails on a chat model, under which condition, and why."""
    with importing():
        from resect.commands import contrast as command
        from resect.commands import study
        from resect.config.contrast import QUICK

    named = {"seed": seed, "position": study.position(position), "filter_by_behaviour": False if no_filter else None}
    sources = command.ContrastSources(model, harmful, matched, unmatched, dtype, revision)
    given = {**(QUICK if quick else {}), **study.collect(config, settings, named)}
    command.run_study(sources, given, out=out, device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)


@app.command()
def recipe(  # noqa: PLR0913  one parameter per option
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file; recipes/ has some.")],
    model: Annotated[str | None, typer.Option(help="Local folder or Hub id, in place of the recipe's.")] = None,
    harmful: o.Harmful = None,
    harmless: o.Harmless = None,
    matched: Matched = None,
    unmatched: Unmatched = None,
    out: o.Out = Path("runs/recipe"),
    settings: o.Set = [],  # noqa: B006
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16, in place of the recipe's.")] = None,
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Run a study that is written down in one file; options fill in what the file leaves open."""
    with importing():
        from resect.commands import recipe as command

    given = {"model": model, "revision": revision, "dtype": dtype}
    given |= {"harmful": harmful, "harmless": harmless, "matched": matched, "unmatched": unmatched}
    found = command.read_recipe(path)
    command.run_recipe(found, given, settings, out=out, device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)
