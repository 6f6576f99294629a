"""The bench of the SRA study: everything its steps share, and what each of them does to one arm."""

from dataclasses import dataclass
from typing import Any

import torch

from resect.config import SRAConfig, StudyConfig
from resect.edit import proof
from resect.edit.plan import EditPlan
from resect.prompts import PromptSet
from resect.studies import scores, selection
from resect.studies.arms import ARMS, Choice, Recipe, needs_energy, recipe, softnesses
from resect.studies.behaviour import Behaviour, observe
from resect.studies.inputs import StudyInputs, gamma_atom
from resect.studies.lab import Lab
from resect.studies.materials import Materials, gather
from resect.studies.steps import Steps


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

    def chosen(self, arm: str, pick: dict[str, Any]) -> tuple[Recipe, Choice]:
        """Return an arm's recipe and choice as selection stored them."""
        choice = selection.chosen(pick)
        return self.recipe(arm, choice.softness), choice


def prepare(inputs: StudyInputs, config: SRAConfig, steps: Steps) -> Bench:
    """Return the bench: the base observed, the materials gathered; raises what `run` raises."""
    lab = Lab(inputs.model, config)
    atom = gamma_atom(inputs, config) if needs_energy(config) else ""
    behaviour = observe(lab, inputs, steps)
    materials = gather(lab, inputs, behaviour, steps)
    answers = None
    if inputs.twin is not None:
        answers = steps.json("twin_test", lambda: twin_ids(lab, inputs, inputs.harmful.test))
    return Bench(lab, inputs, behaviour, materials, scores.reference(lab, inputs, behaviour, answers), steps, atom)


def twin_ids(lab: Lab[StudyConfig], inputs: StudyInputs, prompts: PromptSet) -> list[list[int]]:
    """Return the twin's greedy answers as token ids."""
    return [list(r.ids) for r in lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens, model=inputs.twin)]


def select_arm(bench: Bench, arm: str) -> dict[str, Any]:
    """Return what validation chose for an arm, as `selection.select` stores it."""
    return selection.select(bench.lab, recipes(bench, arm), bench.behaviour)


def recipes(bench: Bench, arm: str) -> dict[float, Recipe]:
    """Return an arm's recipe at each softness that validation tries."""
    return {softness: bench.recipe(arm, softness) for softness in softnesses(ARMS[arm], bench.config)}


def plan_of(bench: Bench, arm: str, pick: dict[str, Any]) -> EditPlan:
    """Return the edit that validation chose for an arm."""
    recipe, choice = bench.chosen(arm, pick)
    return recipe.plan(bench.lab.writers, choice)


def score_plan(bench: Bench, plan: EditPlan) -> dict[str, Any]:
    """Return an edit's test results, prompt by prompt."""
    return scores.score(bench.lab, bench.inputs, bench.behaviour, bench.reference, plan)


def prove_plan(bench: Bench, plan: EditPlan) -> dict[str, Any]:
    """Return the edit proof of a plan applied by hooks, as a study applies it."""
    lab = bench.lab
    before = proof.observe(lab.model, lab.writers, plan)
    with lab.edited(plan):
        return proof.prove(lab.model, lab.writers, plan, before=before).to_json()
