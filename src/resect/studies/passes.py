"""Multi-pass ablation with hard negatives: fit, edit, collect what still refuses, refit (arXiv 2601.08489).

Every pass adds one cleaned direction, found between the extraction prompts that still refuse under the edit so far and the
harmless ones, both read from the edited model; all directions are removed jointly.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect import cleaning, directions
from resect.activations import capture
from resect.config import SRAConfig
from resect.edit.plan import EditPlan, make_plan
from resect.evaluation.verdicts import judge_markers
from resect.prompts import PromptSet
from resect.studies import curves
from resect.studies.arms import Choice, Recipe
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab
from resect.studies.materials import Materials
from resect.studies.scores import Reference

SETTINGS = ("passes", "opening_tokens", "max_new_tokens", "position", "atom_scaling", "seed")
"""Settings that `run_passes` reads."""
FEWEST_HARD = 4
"""Fewest still-refusing prompts that a direction is fitted on."""


def run_passes(
    lab: Lab[SRAConfig], recipe: Recipe, choice: Choice, materials: Materials, behaviour: Behaviour, reference: Reference
) -> list[dict[str, Any]]:
    """Return one entry per pass: test figures, atom spectrum and R^2 of that pass's direction, and why it was the last."""
    layer = choice.source if choice.source is not None else int(recipe.strengths(choice).argmax())
    strengths = recipe.strengths(choice)
    raw, stack, entries = materials.raw, choice.sourced(recipe.vectors)[:, None, :], []
    for number in range(1, lab.config.passes + 1):
        plan = make_plan(lab.writers, stack, strengths)
        hard = _still_refusing(lab, behaviour, plan)
        entries.append(
            {"pass": number, **_figures(lab, plan, behaviour, reference), **_spectrum(materials, raw, layer), "hard_negatives": len(hard)}
        )
        if number == lab.config.passes or len(hard) < FEWEST_HARD:
            entries[-1]["stopped"] = _reason(number, len(hard), lab.config.passes)
            break
        raw = _refit(lab, hard, behaviour, plan)
        cleaned = cleaning.clean(raw[:, None, :], [_term(materials, lab, choice.softness)])
        stack = torch.cat([stack, choice.sourced(cleaned[:, 0])[:, None, :]], dim=1)
        entries[-1]["stopped"] = None
    return entries


def _reason(number: int, hard: int, most: int) -> str:
    return f"only {hard} extraction prompts still refuse" if hard < FEWEST_HARD else f"pass {number} of {most} was the last allowed"


def _term(materials: Materials, lab: Lab[SRAConfig], lam: float) -> cleaning.KeepTerm:
    return cleaning.atom_term(materials.kept_atoms, lam=lam, scaling=lab.config.atom_scaling)


def _still_refusing(lab: Lab[SRAConfig], behaviour: Behaviour, plan: EditPlan) -> PromptSet:
    """Return the extraction prompts that refuse under the edit, openly or as an echo."""
    prompts = behaviour.harmful["extract"].prompts
    with lab.edited(plan):
        said = lab.respond(prompts, max_new_tokens=lab.config.opening_tokens)
    verdicts = judge_markers(said)
    return prompts.where([v == "refuse" or behaviour.echo.heard_in(r) for v, r in zip(verdicts, said, strict=True)])


def _refit(lab: Lab[SRAConfig], hard: PromptSet, behaviour: Behaviour, plan: EditPlan) -> Float[Tensor, "layer d_model"]:
    with lab.edited(plan):
        rows = [
            capture(lab.model, lab.render(prompts), position=lab.config.position, batch_tokens=lab.config.batch_tokens).rows
            for prompts in (hard, behaviour.harmless["extract"].prompts)
        ]
    return directions.mean_difference(*rows)


def _figures(lab: Lab[SRAConfig], plan: EditPlan, behaviour: Behaviour, reference: Reference) -> dict[str, Any]:
    point = curves.measure(lab, plan, behaviour, reference, strength=1.0)
    summary = curves.summary([point], seed=lab.config.seed)[0]
    return {key: summary[key] for key in ("refusal_rate", "kl_first_token", "recovery")}


def _spectrum(materials: Materials, raw: Float[Tensor, "layer d_model"], layer: int) -> dict[str, Any]:
    """Return R^2 on the kept atoms and the coefficient of the direction along every atom, at the layer of greatest strength."""
    kept = torch.nn.functional.normalize(materials.kept_atoms, dim=-1)
    unit = torch.nn.functional.normalize(materials.atoms[layer], dim=-1)
    return {
        "layer": layer,
        "r_squared": float(cleaning.r_squared(raw, kept)[layer]),
        "coefficients": dict(zip(materials.names, (unit @ raw[layer]).tolist(), strict=True)),
    }
