"""Where a model comes from: local folder or Hub id, checked before anything in it is believed."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from resect.errors import UserError, unknown_name

_DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model's folder, or its Hub id and revision."""

    name: str
    revision: str | None
    folder: Path | None


def find(source: str | Path, *, revision: str | None) -> Source:
    """Return where the model is; a local folder wins over a Hub id of the same name.

    Raises:
        UserError: missing path, a file, a folder without config.json or safetensors, an index that points outside, a revision for a folder.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise UserError(f"Revision {revision!r} was asked for, but {path} is a local folder; leave the revision out.")
        _check_folder(path)
        return Source(str(path), None, path)
    if not is_hub_id(source):
        raise UserError(f"There is no model folder {source}; give an existing folder or a Hub id such as owner/name.")
    return Source(str(source), revision, None)


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source that is no existing path can be a Hub id."""
    return not isinstance(source, Path) and not source.startswith((".", "/", "~")) and bool(_HUB_ID.fullmatch(source))


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a model folder; give the folder that holds its config.json.")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a model folder: it has no config.json; give the folder that holds config.json and the weights.")
    if not any(path.glob("*.safetensors")):
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5") for p in path.glob(pattern))
        found = f"found {', '.join(others[:3])}" if others else "found no weights"
        raise UserError(f"{path} holds no .safetensors weights ({found}), and only safetensors are read; convert the weights first.")
    for index in path.glob("*.safetensors.index.json"):
        _check_index(index)


def _check_index(index: Path) -> None:
    """Shard names come from outside: each must be a file in the model's own folder, and there."""
    data = _read_object(index)
    shards = data.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} has no weight_map; get the checkpoint again.")
    for shard in sorted({str(name) for name in shards.values()}):
        pure = PurePosixPath(shard)
        if pure.is_absolute() or ".." in pure.parts or "\\" in shard:
            raise UserError(f"{index} points outside the model folder ({shard!r}), which is unsafe; get the checkpoint from its source.")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index} names the file {shard}, which is missing; get the complete checkpoint.")


def read_config(place: Source, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the model's configuration.

    Raises:
        UserError: no such repository, no network, broken config.json, an architecture that transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(place.name, revision=place.revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, StrictDataclassError) as error:
        what = "read" if place.folder else "read or found on the Hub"
        # What a strict dataclass says first is the name of its validator; the reason is what that raised.
        reason = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise UserError(f"The configuration of {place.name} cannot be {what}: {first_line(reason)}") from error


def is_vision_language(config: PreTrainedConfig) -> bool:
    """Whether the image-text-to-text class is the one that holds the checkpoint's weights.

    Raises:
        UserError: for an architecture that is neither a causal language model nor an image-text-to-text model.
    """
    kind, named = str(config.model_type), set(config.architectures or [])
    causal, vision = (
        _classes(mapping.get(kind)) for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    )
    if named & causal:
        return False
    if named & vision:
        return True
    automatic = set(getattr(config, "auto_map", None) or {})
    if not causal and "AutoModelForCausalLM" not in automatic:
        if vision or "AutoModelForImageTextToText" in automatic:
            return True
        shown = ", ".join(sorted(named)) or kind
        raise UserError(f"{shown} is neither a causal language model nor an image-text-to-text model; give a model that answers in text.")
    return False


def _classes(value: object) -> set[str]:
    return set(value) if isinstance(value, list | tuple) else {str(value)} if value else set()


def dtype_of(name: str) -> torch.dtype | str:
    """Return the torch dtype of that name, or "auto".

    Raises:
        UserError: for another name, with the nearest valid one.
    """
    if name not in _DTYPES:
        raise unknown_name("dtype", name, _DTYPES)
    return _DTYPES[name]


def device_of(name: str) -> torch.device:
    """Return the torch device of that name; auto is the first accelerator, else the processor.

    Raises:
        UserError: for an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in _DEVICES or (index and not index.isdecimal()):
        raise unknown_name("device", name, _DEVICES)
    mps = int(torch.backends.mps.is_available())
    count = {"cpu": 1, "mps": mps, "cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}[kind]
    if int(index or 0) >= count:
        raise UserError(f"Device {name!r} was asked for, but this machine has {count} devices of kind {kind}; use 'auto' or 'cpu'.")
    return torch.device(name)


def processor_template(place: Source) -> str | None:
    """Return the chat template in the processor's chat_template.json (older vision-language models), None where there is none."""
    path = place.folder / "chat_template.json" if place.folder else _download(place, "chat_template.json")
    if path is None or not path.is_file():
        return None
    template = _read_object(path).get("chat_template")
    return template if isinstance(template, str) else None


def _download(place: Source, name: str) -> Path | None:
    try:
        return Path(hf_hub_download(place.name, name, revision=place.revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}; get the checkpoint again.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(data).__name__}; get the checkpoint again.")
    return data


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
