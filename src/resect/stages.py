"""The study's stages one at a time, each from the files of the one before: activations, directions, cleaning, edit, evaluation.

A staged run and `resect sra` share the folder, the settings and every finished step, so a study can be started either way and finished
with the other. A stage that is done again removes what later stages made of its old result.
"""

import hashlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from resect import artifacts, cleaning
from resect.cache import Cache
from resect.config import SRAConfig
from resect.edit.plan import EditPlan
from resect.errors import UserError, unknown_name
from resect.run import (
    CLEANING,
    PROOF,
    read_about,
    read_edit,
    read_materials,
    read_settings,
    save_about,
    save_cleaning,
    save_directions,
    save_edit,
)
from resect.studies import selection, sra
from resect.studies.arms import ARMS, Recipe, recipe, softnesses
from resect.studies.inputs import StudyInputs
from resect.studies.sra import Bench
from resect.studies.steps import Steps

METHODS = {"none": "standard"} | {name: name for name in ("projected", "sra", "whitened", "combined", "random_atoms")}
"""Cleaning methods by the arm whose direction they make."""
STAGES = {
    "activations": ("activations/about.json",),
    "directions": ("directions.safetensors",),
    "cleaning": ("cleaning.safetensors",),
    "edit": ("edit.json", "edit.safetensors", PROOF),
    "evaluation": ("evaluation.json",),
}
"""Every stage with the files it makes, in order."""


@dataclass(frozen=True)
class Fixed:
    """What the user fixes of an edit; what is None is chosen on validation.

    `source` is a layer index or "per_layer", `window` the first and last edited layer.
    """

    strength: float | None = None
    source: str | int | None = None
    window: tuple[int, int] | None = None

    @property
    def anything(self) -> bool:
        """Whether anything is fixed."""
        return any(value is not None for value in (self.strength, self.source, self.window))


def take_activations(
    inputs: StudyInputs, config: SRAConfig, run: Path, *, on_step: Callable[[str], None] | None = None, cache: Cache | None = None
) -> Bench:
    """Observe the base model, capture both sides and the atoms into the (open) run folder, and return the bench.

    Raises:
        UserError: what `sra.prepare` raises.
    """
    bench = sra.prepare(inputs, config, Steps(run, on_step, cache))
    save_about(run, inputs, config, bench.materials)
    return bench


def make_directions(run: Path) -> Float[Tensor, "layer d_model"]:
    """Write the raw refusal direction of the captured activations and return it; no model is needed.

    Raises:
        UserError: no activations, or a finished study in the folder.
    """
    refuse_finished(run, "directions")
    about, materials = read_about(run), read_materials(run)
    save_directions(run, about, materials.raw)
    _forget_after(run, "directions")
    return materials.raw


def make_cleaning(run: Path, *, method: str, softness: float | None = None) -> cleaning.Spectrum:
    """Write the cleaned direction and return what the cleaning did to it; no model is needed.

    `softness` is lambda for atoms, the shrinkage for covariances; unset takes the middle one of the run's settings.

    Raises:
        UserError: unknown method, negative softness or one for a method without, no directions, or a finished study in the folder.
    """
    refuse_finished(run, "cleaning")
    config, about, materials = read_settings(run), read_about(run), read_materials(run)
    raw = _vectors(run, "directions", artifacts.DIRECTIONS, materials.raw)
    arm = ARMS[_known(method, "cleaning method", METHODS)]
    chosen = _softness(arm.name, softness, config)
    cleaned = cleaning.clean(raw[:, None, :], arm.terms(materials, chosen, config))[:, 0]
    save_cleaning(run, about, materials, cleaned, method=arm.name, softness=chosen)
    _forget_after(run, "cleaning")
    term = cleaning.atom_term(materials.kept_atoms, lam=chosen if arm.knob == "lams" else 0.0, scaling=config.atom_scaling)
    return cleaning.spectrum(raw, cleaned, term=term, all_atoms=materials.atoms)


def make_edit(bench: Bench, run: Path, *, arm: str | None = None, fixed: Fixed) -> dict[str, Any]:
    """Write the edit of the cleaned direction and return how it was made; what is not fixed is chosen on validation.

    With `arm` the edit is that arm's, as the study makes it, whatever the cleaning file holds.

    Raises:
        UserError: no cleaning, unknown arm, a layer that the model lacks, or anything fixed in the folder of a finished study.
    """
    if (run / "study.json").exists() and (arm is None or fixed.anything):
        raise UserError(f"{run} holds a finished study, whose arms are scored as they are; name one with --arm and fix nothing else.")
    narrow = _narrowed(bench, fixed)
    if arm is not None and not fixed.anything:
        name = _known(arm, "arm of this run", {a: a for a in bench.config.arms})
        pick = sra.select_arm(bench, name)
        recipes = {selection.chosen(pick).softness: bench.chosen(name, pick)[0]}
    else:
        name, recipes = _recipes(narrow, run, arm)
        pick = selection.select(narrow.lab, recipes, bench.behaviour)
    choice = selection.chosen(pick)
    entry = sra.describe_arm(bench, name, pick)
    # What was measured of the old edit goes first: a kill in between must not leave its figures beside the new one.
    if not (run / "study.json").exists():
        _forget_after(run, "edit")
    plan = recipes[choice.softness].plan(bench.lab.writers, choice)
    save_edit(run, read_about(run), plan, arm=name, choice=entry, proof=sra.prove_plan(bench.lab, plan))
    return entry


def evaluate(bench: Bench, run: Path) -> dict[str, Any]:
    """Write `evaluation.json` of the base and the run's edit on the test prompts, and return it.

    Raises:
        UserError: no edit, an edit of another model, or a finished study in the folder.
    """
    refuse_finished(run, "evaluation")
    plan, description = read_edit(run)
    if description.get("model_fingerprint") != bench.inputs.model.fingerprint:
        raise UserError(f"The edit in {run} was made for another model than the one loaded now; make it again with: resect edit {run}")
    results = {
        "base": sra.score_plan(bench, "base", EditPlan(())),
        str(description["arm"]): sra.score_plan(bench, f"edit_{_digest(run)}", plan),
    }
    evaluation = sra.evaluation_of(bench, results)
    artifacts.write_json(run / "evaluation.json", evaluation)
    return evaluation


def status(run: Path) -> tuple[list[str], list[str]]:
    """Return the stages that are done and those that are not; raises `UserError` if the folder is no run."""
    read_settings(run)
    done = [stage for stage, files in STAGES.items() if all((run / name).is_file() for name in files)]
    return done, [stage for stage in STAGES if stage not in done]


def refuse_finished(run: Path, stage: str) -> None:
    """Raise `UserError` if the folder holds a finished study, whose files must stay as they were measured."""
    if (run / "study.json").exists():
        raise UserError(
            f"{run} holds a finished study, so its {stage} stays as it is; make another folder with: resect activations MODEL --out DIR"
        )


def _recipes(bench: Bench, run: Path, arm: str | None) -> tuple[str, Mapping[float, Recipe]]:
    """Return the recipes to choose among: an arm's at every softness, or the one in the cleaning file."""
    if arm is not None:
        name = _known(arm, "arm of this run", {a: a for a in bench.config.arms})
        return name, {softness: bench.recipe(name, softness) for softness in softnesses(ARMS[name], bench.config)}
    path = run / "cleaning.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no cleaning yet; make it with: resect cleaning {run} (--method none keeps the raw direction)")
    tensors, header = artifacts.load_tensors(path, format=CLEANING, axes={"vectors": 3})
    name, softness = _known(str(header.get("method")), "cleaning method", {a: a for a in ARMS}), float(header.get("softness", 0.0))
    vectors = tensors["vectors"][:, 0].float()
    made = recipe(ARMS[name], bench.materials, bench.config, softness=softness, gamma_atom=bench.gamma_atom)
    if vectors.shape != made.vectors.shape:
        raise UserError(
            f"{path} holds vectors of shape {list(vectors.shape)}, but the model needs {list(made.vectors.shape)}; clean again."
        )
    return name, {softness: replace(made, vectors=vectors, removed=vectors)}


def _narrowed(bench: Bench, fixed: Fixed) -> Bench:
    """Return the bench with a grid that holds only what the user left open."""
    layers, changes = bench.lab.layers, {}
    if fixed.strength is not None:
        if not fixed.strength > 0:
            raise UserError(f"The strength must be above 0, got {fixed.strength:g}; 1 removes the component, 2 reflects it.")
        changes["strengths"] = (fixed.strength,)
    if isinstance(fixed.source, int):
        changes |= {"source": "single", "source_layers": (_depth(fixed.source, layers),)}
    elif fixed.source is not None:
        changes["source"] = "per_layer"
    if fixed.window is not None:
        changes["windows"] = (tuple(_depth(layer, layers) for layer in fixed.window),)
    lab = copy(bench.lab)
    lab.config = bench.config.model_copy(update=changes)
    return replace(bench, lab=lab)


def _depth(layer: int, layers: int) -> float:
    if not 0 <= layer < layers:
        raise UserError(f"Layer {layer} does not exist: the model has {layers} blocks; layers go from 0 to {layers - 1}.")
    return layer / max(1, layers - 1)


def _softness(arm: str, given: float | None, config: SRAConfig) -> float:
    values = sorted(softnesses(ARMS[arm], config))
    if given is None:
        return values[len(values) // 2]
    if ARMS[arm].knob == "none":
        raise UserError(f"The {arm} direction has no lambda; leave --lam out.")
    if given < 0:
        raise UserError(f"lambda must be 0 or more, got {given:g}; 0 projects out exactly, larger values remove less.")
    return given


def _vectors(run: Path, stage: str, format: str, like: Tensor) -> Float[Tensor, "layer d_model"]:
    path = run / f"{stage}.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no {stage} yet; make them with: resect {stage} {run}")
    vectors = artifacts.load_tensors(path, format=format, axes={"vectors": 3})[0]["vectors"][:, 0].float()
    if vectors.shape != like.shape:
        raise UserError(f"{path} holds vectors of shape {list(vectors.shape)}, the activations {list(like.shape)}; make it again.")
    return vectors


def _known(name: str, kind: str, allowed: Mapping[str, str]) -> str:
    if name not in allowed:
        raise unknown_name(kind, name, allowed)
    return allowed[name]


def _forget_after(run: Path, stage: str) -> None:
    names = list(STAGES)
    for later in names[names.index(stage) + 1 :]:
        for file in STAGES[later]:
            (run / file).unlink(missing_ok=True)


def _digest(run: Path) -> str:
    files = b"".join((run / name).read_bytes() for name in STAGES["edit"])
    return hashlib.sha256(files).hexdigest()[:16]
