"""Where an edit comes from on the command line: a run folder, or a directions file with strength and layers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from resect import artifacts
from resect.commands import console
from resect.edit.algebra import Preserve
from resect.edit.plan import EditPlan, joined, make_plan, removal_plan
from resect.edit.strength import flat, window
from resect.errors import UserError, unknown_name
from resect.models.load import ChatModel
from resect.models.skeleton import Skeleton
from resect.models.writers import Kind, Writer


@dataclass(frozen=True)
class Edit:
    """A plan with one sentence on what it does, and the test figures of it if they were measured."""

    plan: EditPlan
    sentence: str
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()


Edited = ChatModel | Skeleton
"""What can be edited: a loaded model, or a checkpoint on disk."""


def from_run(run: Path, model: Edited) -> Edit:
    """Return the edit of a run folder; another model than the run's is allowed if the writers fit, and noted."""
    # Measured: what reads a run takes two seconds to import, and a directions file needs none of it.
    from resect.run import read_edit

    plan, description = read_edit(run)
    choice, arm = description.get("choice") or {}, str(description.get("arm"))
    first, last = choice.get("window") or ("?", "?")
    source = choice.get("source")
    origin = "each layer's own direction" if source == "per_layer" else f"the direction of layer {source}"
    sentence = (
        f"arm `{arm}` ({choice.get('method', 'no description')}), strength {choice.get('strength', 0):g} at its peak, "
        f"layers {first} to {last}, {origin}"
    )
    evaluation = artifacts.read_json(run / "evaluation.json") if (run / "evaluation.json").is_file() else {}
    arms = evaluation.get("arms", {}) if isinstance(evaluation, dict) else {}
    figures = {name: arms[name] for name in ("base", arm) if name in arms} if arm in arms else {}
    made_for = description.get("model_fingerprint")
    notes = () if made_for == model.fingerprint else (_other_model(made_for, model),)
    for note in notes:
        console.warn(note)
    return Edit(plan, sentence, figures, notes)


def given(path: Path | None) -> Path:
    """Return a path that was checked to be there."""
    assert path is not None
    return path


@dataclass(frozen=True)
class Made:
    """How an edit is made from a directions file; what is None was not given.

    `strength` is one number or one for each kind of writer, `embeddings` the layer whose directions the embeddings lose as well.
    """

    strength: float | Mapping[str, float] | None = None
    layers: tuple[int, int] | None = None
    source: str | int | None = None
    preserve: Preserve | None = None
    embeddings: int | None = None

    def given(self) -> list[str]:
        """Return the names of what was given."""
        return [name for name, value in vars(self).items() if value is not None]


def from_directions(path: Path, writers: tuple[Writer, ...], model: Edited, made: Made) -> Edit:
    """Return the edit that removes the directions of a file; `writers` hold the embeddings too if they are to be edited.

    Raises:
        UserError: broken file, vectors that do not fit the model, a layer or a source that the model lacks, a strength that is missing.
    """
    tensors, header = artifacts.load_tensors(path, format=artifacts.DIRECTIONS, axes={"vectors": 3})
    if not tensors["vectors"].is_floating_point():
        raise UserError(f"Tensor 'vectors' of {path} holds {tensors['vectors'].dtype} values; directions are floating-point numbers.")
    vectors = tensors["vectors"].float()
    count = len(model.blocks)
    if (vectors.shape[0], vectors.shape[2]) != (count, model.d_model):
        raise UserError(
            f"{path} holds directions for {vectors.shape[0]} layers of width {vectors.shape[2]}, but {model.name} has {count} of width "
            f"{model.d_model}; give the file of this model."
        )
    first, last = made.layers or (0, count - 1)
    for layer in (first, last, *(i for i in (made.source, made.embeddings) if isinstance(i, int))):
        if not 0 <= layer < count:
            raise UserError(f"Layer {layer} does not exist: the model has {count} blocks; layers go from 0 to {count - 1}.")
    sourced, profile, notes = _sourced(vectors, made.source), window(flat(count), first=first, last=last), ()
    if made.layers is None:
        profile, notes = _where_given(profile, sourced, path)
    plan = _plan(writers, sourced, made, profile=profile)
    origin = f"the direction of layer {made.source}" if isinstance(made.source, int) else "each layer's own direction"
    sentence = (
        f"{vectors.shape[1]} direction(s) a layer from `{path.name}` (method {header.get('method', 'not stated')}), "
        f"strength {_told(made.strength)}, layers {first} to {last}, {origin}"
    )
    kept = f", {made.preserve} norms kept" if made.preserve not in (None, "nothing") else ""
    also = f", embeddings edited along the direction of layer {made.embeddings}" if made.embeddings is not None else ""
    return Edit(plan, sentence + kept + also, {}, notes)


def _plan(
    writers: tuple[Writer, ...], vectors: Float[Tensor, "layer direction d_model"], made: Made, *, profile: Float[Tensor, " layer"]
) -> EditPlan:
    blocks, embeddings = ([w for w in writers if (w.kind == "embedding") == wanted] for wanted in (False, True))
    strengths = _by_kind(made.strength, {w.kind for w in writers})
    per_layer = {kind: strengths[kind] * profile for kind in dict.fromkeys(w.kind for w in blocks)}
    plan = make_plan(blocks, vectors, per_layer, preserve=made.preserve or "nothing")
    if made.embeddings is None:
        return plan
    return joined(plan, removal_plan(embeddings, vectors[made.embeddings], strengths["embedding"]))


def _by_kind(strength: float | Mapping[str, float] | None, kinds: set[str]) -> dict[str, float]:
    """Return the strength of every kind of writer that is to be edited."""
    same = strength if isinstance(strength, int | float) else 1.0
    by_kind: dict[str, float] = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(kinds, same)
    missing, surplus = sorted(kinds - set(by_kind)), sorted(set(by_kind) - kinds)
    if missing:
        raise UserError(f"--strength says nothing of {', '.join(missing)} writers; give {missing[0]}=0 to leave them alone.")
    if surplus:
        raise UserError(f"--strength names {', '.join(surplus)} writers, and none is edited here; there are {', '.join(sorted(kinds))}.")
    if not all(math.isfinite(value) for value in by_kind.values()) or not max(by_kind.values()) > 0:
        raise UserError(f"The strength must be above 0, got {_told(strength)}; 1 removes the component, 2 reflects it.")
    return by_kind


def strength_option(text: str | None) -> float | dict[str, float] | None:
    """Return a strength option: one number, or `attention=1,mlp=0.5` with one a kind of writer."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        found = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UserError(f"--strength takes a number or KIND=NUMBER,..., got {text!r}; for example attention=1,mlp=0.5.") from None
    for name in found:
        if name not in get_args(Kind):
            raise unknown_name("kind of writer", name, get_args(Kind))
    return found


def layers(text: str | None, *, option: str) -> tuple[int, int] | None:
    """Return a range of layers written as first-last, or as one number."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise UserError(f"{option} takes layers as FIRST-LAST with FIRST <= LAST, or one layer, got {text!r}; for example {option} 4-20.")
    return first, last


def source(text: str | None) -> str | int | None:
    """Return a source option: a layer index, or per_layer."""
    if text is None or text == "per_layer":
        return text
    if text.isdigit():
        return int(text)
    raise UserError(f"--source takes per_layer or the index of a layer, got {text!r}; for example --source 14.")


def _told(strength: float | Mapping[str, float] | None) -> str:
    if isinstance(strength, Mapping):
        return ", ".join(f"{value:g} ({kind})" for kind, value in strength.items())
    return f"{1.0 if strength is None else strength:g}"


def _where_given(
    profile: Float[Tensor, " layer"], vectors: Float[Tensor, "layer direction d_model"], path: Path
) -> tuple[Float[Tensor, " layer"], tuple[str, ...]]:
    """Return the profile with 0 at layers that the file has no direction for: files of other projects leave some out."""
    empty = ~vectors.flatten(1).any(dim=1)
    if bool(empty.all()):
        raise UserError(f"{path} holds nothing but zeros, so there is no direction to remove; make the file again.")
    if not bool(empty.any()):
        return profile, ()
    left_out = " ".join(str(layer) for layer in empty.nonzero().flatten().tolist())
    note = f"{path.name} holds no direction for layers {left_out}, which are left alone."
    console.warn(note)
    return torch.where(empty, 0.0, profile), (note,)


def _sourced(vectors: Float[Tensor, "layer direction d_model"], source: str | int | None) -> Float[Tensor, "layer direction d_model"]:
    return vectors[source].expand_as(vectors).clone() if isinstance(source, int) else vectors


def _other_model(made_for: object, model: Edited) -> str:
    return (
        f"The edit was made for a model with fingerprint {str(made_for)[:12]}, this one has {model.fingerprint[:12]}: another model, or "
        "the same in another dtype, so the figures of the run need not hold."
    )


__all__ = ["Edit", "Made", "from_directions", "from_run", "given", "strength_option"]
