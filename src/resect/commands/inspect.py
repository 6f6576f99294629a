"""`resect inspect`: what an edit of a model would touch, how its prompts end, and the memory that each stage would need."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from resect.commands import console
from resect.commands.inputs import open_model, open_organism
from resect.commands.memory import memory_of, table
from resect.errors import UserError
from resect.models import source as sources
from resect.models.chat import chat_template, notes, render
from resect.models.load import find_blocks, load_tokenizer
from resect.models.memory import without_weights
from resect.models.padding import Use, heeds_padding
from resect.models.thinking import tags_in
from resect.models.writers import Writer, find_writers
from resect.organism.shipped import names_organism
from resect.prompts import Prompt

PROBE = "Hello"
APART = ("template", "writers", "memory", "notes")
"""What the terminal shows in a way of its own; the rest is one line each."""
PADDED: dict[str, Use] = {"capture": "left", "scoring": "both", "decoding": "decoding"}
"""Where prompts are padded, and on which side."""
UNHEEDED = "A padded prompt gives other values than the prompt alone, so its batches hold prompts of equal length only: exact, but slower."
NO_WRITERS = "Writers and the heed of padding are found out with the weights; leave out --no-weights to see them."


def inspect(model: str, *, weights: bool, prompt_tokens: int, load: dict[str, Any], as_json: bool) -> None:
    """Show architecture, writers with their proof, whether it heeds padding, the rendering of prompts and predicted memory.

    Without weights there are no writers, and nothing is known of padding.

    Raises:
        UserError: a prompt length below 1, or what loading, finding writers or the prediction raise.
    """
    if prompt_tokens < 1:
        raise UserError(f"--prompt-tokens must be at least 1, got {prompt_tokens}; 128 is usual.")
    console.quiet_libraries()
    with console.progress("inspect", total=3) as step:
        step("loading")
        found = _loaded(model, load, step, prompt_tokens) if weights else _files(model, load)
        step("memory")
        config, dtype = found.pop("config"), getattr(torch, found["dtype"])
        network = without_weights(config, dtype=dtype, trust_remote_code=load["trust_remote_code"])
        memory, too_large = memory_of(network, prompt_tokens=prompt_tokens, device=sources.device_of(load["device"]))
    found |= {**_network(network, config), "memory": memory}
    found["notes"] += [*_quantised(found["quantisation"]), *too_large]
    _show(found, as_json=as_json)


def _loaded(model: str, load: dict[str, Any], step: Any, prompt_tokens: int) -> dict[str, Any]:
    loaded = open_model(model, **load)
    step("writers")
    writers = find_writers(loaded)
    heeded = {name: heeds_padding(loaded, use, tokens=prompt_tokens) for name, use in PADDED.items()}
    return {
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "config": loaded.network.config,
        "dtype": str(loaded.network.dtype).removeprefix("torch."),
        "heeds_padding": heeded,
        "template": _template(loaded.tokenizer),
        "writers": [_writer(w) for w in writers],
        "notes": [*loaded.notes, *([] if all(heeded.values()) else [UNHEEDED])],
    }


def _files(model: str, load: dict[str, Any]) -> dict[str, Any]:
    """Return what configuration, tokenizer and the headers of the weight files tell."""
    name = str(open_organism(model).folder / "aligned") if names_organism(model) else model
    place = sources.find(name, revision=load["revision"])
    config = sources.read_config(place, trust_remote_code=load["trust_remote_code"])
    tokenizer, tokenizer_notes = load_tokenizer(place, trust_remote_code=load["trust_remote_code"])
    stored = stored_bytes(place.folder) if place.folder else {}
    return {
        "model": place.name,
        "fingerprint": None,
        "config": config,
        "dtype": _dtype(sources.dtype_of(load["dtype"]), config, stored),
        "stored": stored,
        "heeds_padding": None,
        "template": _template(tokenizer),
        "writers": None,
        "notes": [*tokenizer_notes, NO_WRITERS],
    }


def stored_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of the tensors in a folder's weight files by dtype, from their headers, most first.

    Raises:
        UserError: a weight file whose header cannot be read.
    """
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    piece = file.get_slice(name)
                    found[piece.get_dtype()] += _bits(piece.get_dtype()) * torch.Size(piece.get_shape()).numel() // 8
        except (SafetensorError, OSError) as error:
            raise UserError(f"The header of {path} cannot be read: {sources.first_line(error)}; get the checkpoint again.") from error
    return dict(found.most_common())


def _bits(dtype: str) -> int:
    """Return the bits of a safetensors dtype, which its name begins with: F32, BF16, F8_E4M3, U8."""
    digits = "".join(c for c in dtype.partition("_")[0] if c.isdigit())
    return int(digits) if digits else 8


def _dtype(wanted: torch.dtype | str, config: PreTrainedConfig, stored: dict[str, int]) -> str:
    """Return the dtype that loading would choose: the one asked for, else the configuration's, else that of most stored weights."""
    if isinstance(wanted, torch.dtype):
        return str(wanted).removeprefix("torch.")
    own = config.dtype or config.get_text_config(decoder=True).dtype
    names = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    by_size = next((names[name] for name in stored if name in names), "float32")
    return str(own).removeprefix("torch.") if own else by_size


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.show_json(found)
        return
    plain = {name: value for name, value in found.items() if name not in APART and value is not None}
    for name, value in (plain | found["template"]).items():
        console.say(f"{name.replace('_', ' ')}: {_said(value)}")
    if found["writers"] is not None:
        console.show(_table(found["writers"]))
    console.show(table(found["memory"]))
    for note in found["notes"]:
        console.say(f"Note: {note}")


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(count)}" for name, count in value.items()) or "none"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _network(network: PreTrainedModel, config: PreTrainedConfig) -> dict[str, Any]:
    output, inputs = network.get_output_embeddings(), network.get_input_embeddings()
    method = config.to_dict().get("quantization_config")
    return {
        "architecture": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "blocks": len(find_blocks(network)),
        "d_model": config.get_text_config(decoder=True).hidden_size,
        "vocabulary": config.get_text_config(decoder=True).vocab_size,
        "tied_embeddings": output is not None and output.weight is inputs.weight,
        "quantisation": None if method is None else str(method.get("quant_method", "unknown")),
        "asks_for_remote_code": bool(config.to_dict().get("auto_map")),
    }


def _quantised(method: str | None) -> list[str]:
    if method is None:
        return []
    return [
        f"The checkpoint is quantised ({method}) and cannot be edited exactly; load the float16, bfloat16 or float32 one, which the memory "
        "is predicted for."
    ]


def _template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    plain = render(tokenizer, [Prompt(PROBE)])[0]
    try:
        render(tokenizer, [Prompt(PROBE, system="You are terse.")])
        system = True
    except UserError:
        system = False
    tail = plain.ids[plain.user_end + 1 :] if plain.user_end is not None else plain.ids[-1:]
    return {
        "prompt": tokenizer.decode(list(plain.ids)),
        "final_prompt_token": tokenizer.convert_ids_to_tokens([plain.ids[-1]])[0],
        "final_prompt_position": len(plain.ids) - 1,
        "tokens_after_user": tokenizer.convert_ids_to_tokens(list(tail)),
        "takes_system_prompt": system,
        "thinking_tags": tags_in(chat_template(tokenizer)),
        "thinking_switch": _switch(tokenizer),
        "ends_inside_thinking": plain.in_thinking,
        "prompt_notes": list(notes([plain])),
    }


def _switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template reacts to being told to think."""
    off, on = (render(tokenizer, [Prompt(PROBE)], thinking=thinking)[0].ids for thinking in (False, True))
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
