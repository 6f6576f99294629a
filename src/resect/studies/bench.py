"""The bench of the SRA study: everything its steps share, and what each of them does to one arm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from resect.config import SRAConfig, StudyConfig
from resect.edit import proof
from resect.edit.plan import EditPlan
from resect.generation import Response
from resect.studies import scores, selection
from resect.studies.arms import ARMS, Choice, Recipe, needs_energy, recipe, softnesses
from resect.studies.behaviour import Behaviour, observe, response_ids
from resect.studies.inputs import StudyInputs, gamma_atom
from resect.studies.lab import Lab
from resect.studies.materials import Materials, gather
from resect.studies.side_by_side import side_by_side, threads_of_steps
from resect.studies.steps import Steps

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bench:
    """What all steps share: the model with its behaviour and materials, and what edits of it are compared with."""

    lab: Lab[SRAConfig]
    inputs: StudyInputs
    behaviour: Behaviour
    materials: Materials
    reference: scores.Reference
    steps: Steps
    gamma_atom: str

    @property
    def config(self) -> SRAConfig:
        """The settings of the study."""
        return self.lab.config

    def recipe(self, arm: str, softness: float) -> Recipe:
        """Return an arm's direction and profile at a softness of the cleaning."""
        return recipe(ARMS[arm], self.materials, self.config, softness=softness, gamma_atom=self.gamma_atom)

    def cleaned(self, lam: float) -> torch.Tensor:
        """Return SRA's direction at a lambda, whichever arms run."""
        return self.recipe("sra_flat", lam).vectors

    def step(self, name: str, compute: Callable[..., Any], *made_of: object, settings: tuple[str, ...] = ()) -> Any:
        """Return `compute(lab, *made_of)` as JSON: read back from the run folder or the cache, or computed and kept.

        The lab has only the settings that are named, so the key of the cache knows all that the function can read.
        """
        lab = self.lab.only(*settings)
        with threads_of_steps(lab.model):
            return self.steps.json(name, lambda: compute(lab, *made_of), key=lab.key(compute.__qualname__, *made_of))

    def together(self, tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """Return the results of tasks that do not need one another (`side_by_side`)."""
        return side_by_side(self.lab.model, self.steps, tasks, processes=self.config.processes)

    def chosen(self, arm: str, pick: dict[str, Any]) -> tuple[Recipe, Choice]:
        """Return an arm's recipe and choice as selection stored them."""
        choice = selection.chosen(pick)
        return self.recipe(arm, choice.softness), choice


def prepare(inputs: StudyInputs, config: SRAConfig, steps: Steps) -> Bench:
    """Return the bench: the base observed, the materials gathered; raises what `run` raises."""
    lab = Lab(inputs.model, config, steps.cache)
    atom = gamma_atom(inputs, config) if needs_energy(config) else ""
    behaviour = observe(lab, inputs, steps)
    materials = gather(lab, inputs, behaviour, steps)
    answers = twin_responses(lab, inputs, steps, "test") if inputs.twin is not None else None
    return Bench(lab, inputs, behaviour, materials, scores.reference(lab, inputs, behaviour, answers), steps, atom)


def twin_responses(lab: Lab[StudyConfig], inputs: StudyInputs, steps: Steps, part: str) -> tuple[Response, ...]:
    """Return the twin's greedy answers to a part of the harmful prompts."""
    lab, prompts = lab.only("max_new_tokens"), dict(inputs.harmful.items())[part]
    assert inputs.twin is not None
    twin = inputs.twin
    known = lab.key("responses", twin, prompts)
    return lab.read(prompts.prompts, steps.json(f"twin_{part}", lambda: response_ids(lab, twin, prompts), key=known))


def select_arm(bench: Bench, arm: str) -> dict[str, Any]:
    """Return what validation chose for an arm, as `selection.select` stores it."""
    known = bench.behaviour.on("validation")
    return bench.step(f"selection_{arm}", selection.select, recipes(bench, arm), known, settings=selection.SETTINGS)


def recipes(bench: Bench, arm: str) -> dict[float, Recipe]:
    """Return an arm's recipe at each softness that validation tries."""
    return {softness: bench.recipe(arm, softness) for softness in softnesses(ARMS[arm], bench.config)}


def plan_of(bench: Bench, arm: str, pick: dict[str, Any]) -> EditPlan:
    """Return the edit that validation chose for an arm."""
    recipe, choice = bench.chosen(arm, pick)
    return recipe.plan(bench.lab.writers, choice)


def score_plan(bench: Bench, name: str, plan: EditPlan) -> dict[str, Any]:
    """Return an edit's test results, prompt by prompt, as the step `test_NAME`."""
    known, inputs = bench.behaviour.on("test"), bench.inputs
    made_of = (plan, known, bench.reference, inputs.questions, inputs.texts)
    return bench.step(f"test_{name}", scores.score, *made_of, settings=scores.SETTINGS)


def prove_plan(lab: Lab[StudyConfig], plan: EditPlan) -> dict[str, Any]:
    """Return the edit proof of a plan applied by hooks, as a study applies it."""
    before = proof.observe(lab.model, lab.writers, plan)
    with lab.edited(plan):
        return proof.prove(lab.model, lab.writers, plan, before=before).to_json()
