"""`resect inspect`: what an edit of a model would touch, and how its prompts end."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from resect.commands import console
from resect.commands.inputs import open_model
from resect.errors import UserError
from resect.models.chat import notes, render
from resect.models.load import ChatModel
from resect.models.writers import Writer, find_writers
from resect.prompts import Prompt

PROBE = "Hello"


def inspect(model: str, *, load: dict[str, Any], as_json: bool) -> None:
    """Show architecture, writers with their proof, and the rendering of prompts."""
    console.quiet_libraries()
    with console.progress("inspect", total=2) as step:
        step("loading")
        loaded = open_model(model, **load)
        step("writers")
        writers = find_writers(loaded)
    found = {**_network(loaded), "template": _template(loaded), "writers": [_writer(w) for w in writers], "notes": list(loaded.notes)}
    if as_json:
        console.show_json(found)
        return
    plain = {name: value for name, value in found.items() if name not in ("template", "writers", "notes")}
    for name, value in (plain | found["template"]).items():
        console.say(f"{name.replace('_', ' ')}: {_said(value)}")
    console.show(_table(found["writers"]))
    for note in found["notes"]:
        console.say(f"Note: {note}")


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _network(model: ChatModel) -> dict[str, Any]:
    network = model.network
    output = network.get_output_embeddings()
    inputs = network.get_input_embeddings()
    return {
        "model": model.name,
        "architecture": type(network).__name__,
        "fingerprint": model.fingerprint,
        "dtype": str(network.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in network.parameters()),
        "blocks": len(model.blocks),
        "d_model": model.d_model,
        "tied_embeddings": output is not None and output.weight is inputs.weight,
    }


def _template(model: ChatModel) -> dict[str, Any]:
    plain = render(model.tokenizer, [Prompt(PROBE)])[0]
    try:
        render(model.tokenizer, [Prompt(PROBE, system="You are terse.")])
        system = True
    except UserError:
        system = False
    tail = plain.ids[plain.user_end + 1 :] if plain.user_end is not None else plain.ids[-1:]
    return {
        "prompt": model.tokenizer.decode(list(plain.ids)),
        "final_prompt_token": model.tokenizer.convert_ids_to_tokens([plain.ids[-1]])[0],
        "final_prompt_position": len(plain.ids) - 1,
        "tokens_after_user": model.tokenizer.convert_ids_to_tokens(list(tail)),
        "takes_system_prompt": system,
        "thinking_switch": _switch(model),
        "ends_inside_thinking": plain.in_thinking,
        "prompt_notes": list(notes([plain])),
    }


def _switch(model: ChatModel) -> bool:
    """Whether the template reacts to being told to think."""
    off, on = (render(model.tokenizer, [Prompt(PROBE)], thinking=thinking)[0].ids for thinking in (False, True))
    return off != on


def _writer(writer: Writer) -> dict[str, Any]:
    return {
        "name": writer.name,
        "layer": writer.layer,
        "kind": writer.kind,
        "coefficient": writer.coefficient,
        "gain": writer.gain is not None,
        "parameters": [{"name": p.name, "layout": p.layout} for p in writer.parameters],
        "error": writer.error,
    }


def _table(writers: Sequence[dict[str, Any]]) -> Table:
    table = console.table("layer", "kind", "writer", "coefficient", "gain", "parameters", "proof error")
    for w in writers:
        names = ", ".join(p["name"].removeprefix(f"{w['name']}.") for p in w["parameters"][:3])
        more = f" and {len(w['parameters']) - 3} more" if len(w["parameters"]) > 3 else ""
        table.add_row(
            str(w["layer"]), w["kind"], w["name"], f"{w['coefficient']:g}", "yes" if w["gain"] else "no", names + more, f"{w['error']:.1e}"
        )
    return table
