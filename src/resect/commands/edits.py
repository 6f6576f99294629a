"""Where an edit comes from on the command line: a run folder, or a directions file with strength and layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect import artifacts
from resect.commands import console
from resect.edit.plan import EditPlan, make_plan
from resect.edit.strength import flat, window
from resect.errors import UserError
from resect.models.load import ChatModel
from resect.models.writers import Writer
from resect.run import DIRECTIONS, read_edit


@dataclass(frozen=True)
class Edit:
    """A plan with one sentence on what it does, and the test figures of it if they were measured."""

    plan: EditPlan
    sentence: str
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()


def from_run(run: Path, model: ChatModel) -> Edit:
    """Return the edit of a run folder; another model than the run's is allowed if the writers fit, and noted."""
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


def from_directions(
    path: Path, writers: tuple[Writer, ...], model: ChatModel, *, strength: float, layers: tuple[int, int] | None, source: str | int | None
) -> Edit:
    """Return the edit that removes the directions of a file at one strength.

    Raises:
        UserError: broken file, vectors that do not fit the model, a layer or a source that the model lacks.
    """
    tensors, header = artifacts.load_tensors(path, format=DIRECTIONS, axes={"vectors": 3})
    if not tensors["vectors"].is_floating_point():
        raise UserError(f"Tensor 'vectors' of {path} holds {tensors['vectors'].dtype} values; directions are floating-point numbers.")
    vectors = tensors["vectors"].float()
    count = len(model.blocks)
    if (vectors.shape[0], vectors.shape[2]) != (count, model.d_model):
        raise UserError(
            f"{path} holds directions for {vectors.shape[0]} layers of width {vectors.shape[2]}, but {model.name} has {count} of width "
            f"{model.d_model}; give the file of this model."
        )
    first, last = layers or (0, count - 1)
    for layer in (first, last, *([source] if isinstance(source, int) else [])):
        if not 0 <= layer < count:
            raise UserError(f"Layer {layer} does not exist: the model has {count} blocks; layers go from 0 to {count - 1}.")
    if not strength > 0:
        raise UserError(f"The strength must be above 0, got {strength:g}; 1 removes the component, 2 reflects it.")
    sourced = _sourced(vectors, source)
    gammas, notes = strength * window(flat(count), first=first, last=last), ()
    if layers is None:
        gammas, notes = _where_given(gammas, sourced, path)
    plan = make_plan(writers, sourced, gammas)
    origin = f"the direction of layer {source}" if isinstance(source, int) else "each layer's own direction"
    sentence = (
        f"{vectors.shape[1]} direction(s) a layer from `{path.name}` (method {header.get('method', 'not stated')}), "
        f"strength {strength:g}, layers {first} to {last}, {origin}"
    )
    return Edit(plan, sentence, {}, notes)


def _where_given(
    gammas: Float[Tensor, " layer"], vectors: Float[Tensor, "layer direction d_model"], path: Path
) -> tuple[Float[Tensor, " layer"], tuple[str, ...]]:
    """Return the strengths with 0 at layers that the file has no direction for: files of other projects leave some out."""
    empty = ~vectors.flatten(1).any(dim=1)
    if bool(empty.all()):
        raise UserError(f"{path} holds nothing but zeros, so there is no direction to remove; make the file again.")
    if not bool(empty.any()):
        return gammas, ()
    left_out = " ".join(str(layer) for layer in empty.nonzero().flatten().tolist())
    note = f"{path.name} holds no direction for layers {left_out}, which are left alone."
    console.warn(note)
    return torch.where(empty, 0.0, gammas), (note,)


def _sourced(vectors: Float[Tensor, "layer direction d_model"], source: str | int | None) -> Float[Tensor, "layer direction d_model"]:
    return vectors[source].expand_as(vectors).clone() if isinstance(source, int) else vectors


def _other_model(made_for: object, model: ChatModel) -> str:
    return (
        f"The edit was made for a model with fingerprint {str(made_for)[:12]}, this one has {model.fingerprint[:12]}: another model, or "
        "the same in another dtype, so the figures of the run need not hold."
    )


def expected_left(gamma: float) -> float:
    """Return the share of the component that an edit of this strength leaves: |1 - gamma|."""
    return abs(1 - gamma)


__all__ = ["Edit", "expected_left", "from_directions", "from_run"]
