"""Run with the Python of the peer's environment by peer_coverage.py: heretic's own edit on checkpoints, measured by a probe of ours.

    PEER_PYTHON peer_coverage_runner.py --seconds 60 CHECKPOINT …       # one JSON line for each checkpoint and setting

A checkpoint's folder also holds `directions.safetensors` (`vectors`, [layer, d_model], or one row for all layers). heretic loads the model,
and its `abliterate` takes each block's direction out of everything it edits, at weight 1 in every block. The probe sees what a block adds
to the residual stream, output minus input, on random tokens: before, and after it with every block given the input it had before.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import heretic.config
import heretic.model
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "no_row_normalization": {"row_normalization": "none"}}
EDITED = 1e-12  # an adapter of exactly zero changes nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of one measurement")
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    sys.argv[1:] = []  # heretic's settings read the command line as well
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    for folder in options.folders:
        for name in SETTINGS:
            print(json.dumps({"name": folder.name, "setting": name} | apart(folder, name, options.seconds)), flush=True)


def apart(folder: Path, setting: str, seconds: float) -> dict[str, Any]:
    """Return a measurement made in a process of its own, so that a crash or a hang is a row as well."""
    processes = multiprocessing.get_context("fork")  # the libraries are imported once
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=send, args=(folder, setting, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else failed("not measured", f"took more than {seconds:g} s")
    except EOFError:
        process.join()
        return failed("not measured", f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def send(folder: Path, setting: str, pipe: Connection) -> None:
    pipe.send(measure(folder, setting))


def failed(status: str, error: object) -> dict[str, Any]:
    return {"status": status, "left_max": None, "left": [], "touched": [], "error": " ".join(str(error).split())[:300]}


def measure(folder: Path, setting: str) -> dict[str, Any]:
    """Return one row: status, the share left in each block and the greatest, the modules edited in any block, the error."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        return failed("unknown to its transformers", f"transformers {transformers.__version__} has no {kind}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            model = loaded(folder, setting)
    except Exception as error:  # noqa: BLE001 (what heretic cannot load is a row of the table)
        return blamed(folder, failed("not loaded", reason(said.getvalue(), error)))
    try:
        with contextlib.redirect_stdout(said):
            return edited(model, load_file(folder / "directions.safetensors")["vectors"])
    except Exception as error:  # noqa: BLE001 (and so is what it cannot edit)
        return blamed(folder, failed("not edited", f"{type(error).__name__}: {error}"))


def blamed(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a failure, as it is if the checkpoint generates a token without heretic; else heretic is not to blame."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    loader = transformers.AutoModelForImageTextToText if kind in IMAGE_TEXT else transformers.AutoModelForCausalLM
    try:
        loader.from_pretrained(folder).generate(probe_ids(), attention_mask=torch.ones_like(probe_ids()), max_new_tokens=1, do_sample=False)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is not heretic's)
        return failed("does not run without it", f"{type(error).__name__}: {error}")
    return row


def loaded(folder: Path, setting: str) -> heretic.model.Model:
    """Return heretic's model of the checkpoint. The processor is only kept for saving, and our checkpoints have none."""
    settings = heretic.config.Settings(model=str(folder), seed=0, **SETTINGS[setting])
    with patch.object(heretic.model.AutoProcessor, "from_pretrained", return_value=None):
        return heretic.model.Model(settings)


def reason(said: str, error: Exception) -> str:
    """Return why loading failed: what heretic printed for the first dtype that it tried, else the error."""
    text = " ".join(said.split())
    return text.partition("Failed")[2].partition("* Trying")[0].strip(" (:)") or f"{type(error).__name__}: {error}"


def edited(model: heretic.model.Model, directions: Tensor) -> dict[str, Any]:
    """Return the row of a model that heretic could load."""
    blocks = list(model.get_layers())
    inputs, before = updates(model.model, blocks)
    if before[0].shape[1] != directions.shape[1]:
        return failed("not measured", f"the stream is {before[0].shape[1]} wide, the direction {directions.shape[1]}")
    full = heretic.model.AbliterationParameters(
        max_weight=1.0, max_weight_position=0.0, min_weight=1.0, min_weight_distance=float(len(blocks))
    )
    units = (directions / directions.norm(dim=1, keepdim=True)).expand(len(blocks), -1)
    # Its directions are of unit length, and the first belongs to the embeddings, which it does not edit.
    padded = torch.cat([torch.zeros_like(units[:1]), units])
    model.abliterate(padded, None, dict.fromkeys(model.get_abliterable_components(), full))
    _, after = updates(model.model, blocks, given=inputs)
    left = [float((a @ r).norm() / (b @ r).norm()) for a, b, r in zip(after, before, units.double(), strict=True)]
    return {"status": "edited", "left_max": max(left), "left": left, "touched": sorted(touched(blocks)), "error": None}


def touched(blocks: list[nn.Module]) -> set[str]:
    """Return the names within a block of the modules whose adapter is not zero, `*` for a number."""
    found = set()
    for block in blocks:
        for name, module in block.named_modules():
            adapter = getattr(module, "lora_B", {})
            if "default" in adapter and float(adapter["default"].weight.abs().max()) > EDITED:
                found.add(".".join("*" if part.isdigit() else part for part in name.split(".")))
    return found


def updates(network: nn.Module, blocks: list[nn.Module], *, given: list[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Return every block's input and what it adds to it, [token, d_model] in float64; with `given`, blocks are fed these inputs."""
    inputs: list[Tensor] = []
    added: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value = args[0] if args else kwargs["hidden_states"]
        inputs.append((value if given is None else given[len(inputs)]).clone())
        return ((inputs[-1].clone(), *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": inputs[-1].clone()})

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple | list) else output
        width = out.shape[-1]
        added.append(out.double().reshape(-1, width) - inputs[-1].double().reshape(-1, width))

    with hooked(blocks, enter, leave):
        network(input_ids=probe_ids(), attention_mask=torch.ones_like(probe_ids()))
    return inputs, added


def probe_ids() -> Tensor:
    return torch.randint(20, 200, (2, 24), generator=torch.Generator().manual_seed(7))


@contextlib.contextmanager
def hooked(blocks: list[nn.Module], enter: Any, leave: Any) -> Iterator[None]:
    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
