"""The command line. Heavy imports live inside the commands, so that `resect --help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from resect.commands import options as o
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


@app.command()
def demo(out: o.Out = Path("runs/demo"), config: o.Config = None, settings: o.Set = [], as_json: o.Json = False) -> None:  # noqa: B006, FBT002
    """Run the SRA study on the shipped model organism; needs no network and no files."""
    from resect.commands import study
    from resect.commands.inputs import SHIPPED, Sources

    study.run_study(Sources(SHIPPED), study.collect(config, settings, {}), out=out, as_json=as_json)


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
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Run the surgical refusal ablation study with its controls on a chat model."""
    from resect.commands import study
    from resect.commands.inputs import Sources

    named = {"lams": None if lam is None else [lam], "passes": passes, "seed": seed, "position": study.position(position)}
    named |= {"filter_by_behaviour": False if no_filter else None, "keep_text": True if keep_text else None}
    sources = Sources(model, harmful, harmless, tuple(atoms), tuple(questions), text, dtype, revision)
    given = study.collect(config, settings, named)
    study.run_study(sources, given, out=out, device=device, trust_remote_code=trust, as_json=as_json)


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
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Stage 1: observe the base model and capture activations into a run folder."""
    from resect.commands import stages, study
    from resect.commands.inputs import Sources

    named = {"seed": seed, "position": study.position(position), "filter_by_behaviour": False if no_filter else None}
    sources = Sources(model, harmful, harmless, tuple(atoms), tuple(questions), text, dtype, revision)
    given = study.collect(config, settings, named)
    stages.activations(sources, given, out=out, device=device, trust_remote_code=trust, as_json=as_json)


@app.command()
def directions(run: o.Run, as_json: o.Json = False) -> None:  # noqa: FBT002
    """Stage 2: the raw refusal direction from a run's activations."""
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
    from resect.commands import stages

    stages.cleaning(run, method=method, lam=lam, as_json=as_json)


@app.command()
def edit(
    run: o.Run,
    strength: Annotated[float | None, typer.Option(help="Peak strength; 1 removes, 2 reflects; unset lets validation choose.")] = None,
    source: Annotated[str | None, typer.Option(help="per_layer, or the layer whose direction is used everywhere.")] = None,
    window: Annotated[str | None, typer.Option(help="Edited layers as FIRST-LAST.")] = None,
    arm: Annotated[str | None, typer.Option(help="Take this arm of the study in place of the cleaned direction.")] = None,
    device: o.Device = "auto",
    trust: o.Trust = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Stage 4: make the edit; what is not given is chosen on validation."""
    from resect.commands import stages

    fixed = stages.Fixed(strength, stages.source(source), stages.layers(window, option="--window"))
    stages.edit(run, arm=arm, fixed=fixed, device=device, trust_remote_code=trust, as_json=as_json)


@app.command()
def evaluate(run: o.Run, device: o.Device = "auto", trust: o.Trust = False, as_json: o.Json = False) -> None:  # noqa: FBT002
    """Stage 5: score the base and the run's edit on the test prompts."""
    from resect.commands import stages

    stages.evaluate(run, device=device, trust_remote_code=trust, as_json=as_json)


@app.command()
def report(run: o.Run) -> None:
    """Build report.html of a finished study again."""
    from resect.commands import stages

    stages.report(run)


@app.command()
def apply(  # noqa: PLR0913
    model: o.Model,
    out: Annotated[Path, typer.Option("--out", help="New folder for the edited model.")],
    directions: Annotated[Path | None, typer.Option(help="Directions file (format resect.directions/1).")] = None,
    run: Annotated[Path | None, typer.Option("--edit", help="Run folder whose edit is applied.")] = None,
    strength: Annotated[str | None, typer.Option(help="For a directions file: a number, 1 if unset, or attention=1,mlp=0.5.")] = None,
    layers: Annotated[str | None, typer.Option(help="Edited layers as FIRST-LAST, for a directions file.")] = None,
    source: Annotated[str | None, typer.Option(help="per_layer, or the layer whose direction is used everywhere.")] = None,
    preserve: Annotated[str | None, typer.Option(help="Norms of the weights to keep: column, or row, which leaks.")] = None,
    embeddings: Annotated[int | None, typer.Option(help="Edit the embeddings too, along the direction of this layer.")] = None,
    untie: Annotated[bool, typer.Option("--untie", help="Give a tied output head its own weights before --embeddings.")] = False,  # noqa: FBT002
    adapter: Annotated[bool, typer.Option("--adapter", help="Save a PEFT adapter instead of a whole model.")] = False,  # noqa: FBT002
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Write an edit into a model, or as an adapter, prove it, and save it as an ordinary folder."""
    from resect.commands import apply, edits, stages
    from resect.edit.plan import preserve_of

    kept = None if preserve is None else preserve_of(preserve)
    span = stages.layers(layers, option="--layers")
    made = edits.Made(edits.strength_option(strength), span, stages.source(source), kept, embeddings)
    form = apply.Form(adapter=adapter, untie=untie)
    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
    apply.apply(model, run=run, directions=directions, made=made, form=form, out=out, load=load, as_json=as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Run folder, directions file, or a .gguf or .npy file made elsewhere.")],
    out: Annotated[Path, typer.Option("--out", help="New file: a .gguf control vector, or a .safetensors directions file.")],
    layers: Annotated[int | None, typer.Option(help="Number of blocks of the model, for a .gguf file.", min=1)] = None,
    direction: Annotated[int | None, typer.Option(help="Which direction of a layer, where a file has several.", min=0)] = None,
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Convert directions to and from the control vectors of llama.cpp and repeng."""
    from resect.commands import convert

    convert.convert(source, out=out, layers=layers, direction=direction, as_json=as_json)


@app.command()
def chat(
    model: o.Model,
    run: Annotated[Path, typer.Option("--edit", help="Run folder whose edit is tried.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Answer prompts from standard input with the base and the edited model, side by side."""
    from resect.commands import chat

    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
    chat.chat(model, run, max_new_tokens=max_new_tokens, load=load, as_json=as_json)


@app.command()
def inspect(
    model: o.Model,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Read no weights: everything but the writers.")] = False,  # noqa: FBT002
    prompt_tokens: Annotated[int, typer.Option(help="Length of prompts, in tokens, for which memory is predicted.")] = 128,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Show a model's residual writers with their proof, how its prompts end, and the memory that each stage needs."""
    from resect.commands import inspect

    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
    inspect.inspect(model, weights=not no_weights, prompt_tokens=prompt_tokens, load=load, as_json=as_json)


@organism_app.command("train")
def organism_train(
    out: Annotated[Path, typer.Option("--out", help="New folder for the organism.")],
    architecture: Annotated[str, typer.Option(help="qwen3, gemma3, ministral3, qwen3_moe or qwen3_5.")] = "qwen3",
    seed: Annotated[int, typer.Option(help="Seed of language and training.")] = 0,
    entanglement: Annotated[float | None, typer.Option(help="0 to 1: how strongly form goes with harm.")] = None,
    tuning: Annotated[str, typer.Option(help="gated or overwriting.")] = "gated",
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Train an organism: the helpful-only twin, then the safety-tuned model."""
    from resect.commands import organism

    organism.train(out, architecture=architecture, seed=seed, entanglement=entanglement, tuning=tuning, as_json=as_json)


@organism_app.command("list")
def organism_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of organisms, besides the shipped one.")] = None,
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """List the shipped organism, and those in a folder, with their measured quality."""
    from resect.commands import organism

    organism.show(folder, as_json=as_json)


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
