"""`resect convert`: directions files to and from the formats of other projects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from resect import artifacts
from resect.commands import console
from resect.control_vectors import load_gguf, load_npy, save_gguf
from resect.errors import UserError
from resect.run import CLEANING

READERS: dict[str, Callable[[Path, int | None], Float[Tensor, "layer direction d_model"]]] = {
    ".gguf": lambda path, layers: load_gguf(path, layers=layers),
    ".npy": lambda path, _: load_npy(path),
}
"""Foreign formats by the ending of the file."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz")


def convert(source: Path, *, out: Path, layers: int | None, direction: int | None, as_json: bool) -> None:
    """Convert a run's or a file's directions to a GGUF control vector, or a foreign file to a directions file; the endings say which.

    Raises:
        UserError: endings that no conversion joins, a file that is there already, a broken or foreign file, what the format cannot hold.
    """
    if out.exists():
        raise UserError(f"{out} exists, and nothing is overwritten; choose another --out.")
    kind = "run" if source.is_dir() else source.suffix
    if kind in PICKLES:
        raise UserError(
            f"{source} is a pickle or a zip of them, which can run code when it is read, and is never read; open it where you trust it, "
            "and write one array [layer, d_model] with numpy.save, which resect convert reads."
        )
    if kind in ("run", ".safetensors") and out.suffix == ".gguf":
        done = _export(source / "directions.safetensors" if kind == "run" else source, out, direction=direction)
    elif kind in READERS and out.suffix == ".safetensors":
        done = _import(source, out, layers=layers)
    else:
        raise UserError(
            f"There is no conversion from {kind or source.name} to {out.suffix or out.name}; a run folder or a .safetensors file becomes "
            ".gguf, and a .gguf or .npy file becomes .safetensors."
        )
    if as_json:
        console.show_json({"out": str(out), **done})
        return
    console.say(f"{out}: {len(done['layers'])} directions, layers {_ranges(done['layers'])}")
    for note in done["notes"]:
        console.say(f"Note: {note}")


def _export(source: Path, out: Path, *, direction: int | None) -> dict[str, Any]:
    format = CLEANING if source.name == "cleaning.safetensors" else artifacts.DIRECTIONS
    tensors, header = artifacts.load_tensors(source, format=format, axes={"vectors": 3})
    vectors = tensors["vectors"].float()
    count = vectors.shape[1]
    if count > 1 and direction is None:
        raise UserError(
            f"{source} holds {count} directions a layer, and a control vector one; choose it with --direction 0 to {count - 1}."
        )
    if not 0 <= (direction or 0) < count:
        raise UserError(f"Direction {direction} does not exist: {source} holds {count} a layer; they go from 0 to {count - 1}.")
    chosen = vectors[:, direction or 0]
    written = save_gguf(out, chosen, hint=Path(str(header.get("model") or "unknown")).name)
    notes = ["Norms are as in the file; llama.cpp adds the vector times its scale, and resect removes the component along it."]
    if bool(chosen[0].any()):
        notes.insert(0, "Layer 0 is left out: llama.cpp adds nothing after the first block.")
    return {"layers": list(written), "notes": notes}


def _import(source: Path, out: Path, *, layers: int | None) -> dict[str, Any]:
    vectors = READERS[source.suffix](source, layers)
    if layers is not None and len(vectors) != layers:
        raise UserError(f"{source} holds {len(vectors)} layers, and --layers says {layers}; leave it out, or give the file of this model.")
    artifacts.save_tensors(out, {"vectors": vectors}, {"format": artifacts.DIRECTIONS, "method": f"imported from {source.name}"})
    named = [layer for layer, row in enumerate(vectors) if bool(row.any())]
    notes = []
    if layers is None and source.suffix == ".gguf":
        notes.append(
            f"The file does not say how many layers the model has; taken are {len(vectors)}, the last one named. Or give --layers."
        )
    if len(named) < len(vectors):
        missing = [layer for layer in range(len(vectors)) if layer not in named]
        notes.append(f"No direction for layers {_ranges(missing)}: they are zero, and resect apply leaves them alone.")
    return {"layers": named, "notes": notes}


def _ranges(layers: list[int]) -> str:
    """Return sorted layers for people: 1-5, 8."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
