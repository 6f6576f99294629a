"""Models and directions files: look into them, edit, convert and try them."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from resect.cli.application import app, importing
from resect.commands import options as o


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
    from resect.edit.copies import copied_ahead

    in_memory = adapter or untie or trust or embeddings is not None or (dtype, device) != ("auto", "auto")
    # Before the imports below, which take seconds: the disk works meanwhile.
    with nullcontext() if in_memory else copied_ahead(model, out) as copies:
        with importing():
            from resect.commands import apply, edits
            from resect.edit.plan import preserve_of

        kept = None if preserve is None else preserve_of(preserve)
        span = edits.layers(layers, option="--layers")
        made = edits.Made(edits.strength_option(strength), span, edits.source(source), kept, embeddings)
        form = apply.Form(adapter=adapter, untie=untie)
        load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
        apply.apply(model, run=run, directions=directions, made=made, form=form, out=out, load=load, copies=copies, as_json=as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Run folder, directions file, or a .gguf or .npy file made elsewhere.")],
    out: Annotated[Path, typer.Option("--out", help="New file: a .gguf control vector, or a .safetensors directions file.")],
    layers: Annotated[int | None, typer.Option(help="Number of blocks of the model, for a .gguf file.", min=1)] = None,
    direction: Annotated[int | None, typer.Option(help="Which direction of a layer, where a file has several.", min=0)] = None,
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Convert directions to and from the control vectors of llama.cpp and repeng."""
    with importing():
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
    with importing():
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
    with importing():
        from resect.commands import inspect

    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
    inspect.inspect(model, weights=not no_weights, prompt_tokens=prompt_tokens, load=load, as_json=as_json)
