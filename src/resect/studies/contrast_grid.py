"""The grid of the contrast study, layers x weights, read in two steps.

Screen: one forward pass over the validation prompts of both sides gives a cell its refusals by the first token and its KL, at the first
token and teacher-forced. Whole responses are read where some greedy first token is another than the base's, or where the edit is not all
but inert: an edit that breaks the model may leave first tokens standing. Elsewhere the responses are taken to be judged as the base's. Some
of the cells so spared are read all the same, and the report says how many of them were judged right.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from resect.config import ContrastConfig
from resect.edit.plan import EditPlan
from resect.evaluation import drift
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.verdicts import judge_markers
from resect.prompts import Prompt
from resect.studies.behaviour import Asked, Behaviour
from resect.studies.contrast_arms import Recipe
from resect.studies.lab import Lab

INERT = 0.1
"""Teacher-forced KL on benign prompts, in nats per token, below which an edit that moves no first token is not read further."""


@dataclass(frozen=True)
class Place:
    """The layers that are edited together."""

    layers: tuple[int, ...]
    kind: str


@dataclass(frozen=True, eq=False)
class Screen:
    """What every cell is measured on: validation prompts of both sides, and the base model's distributions along its own answers."""

    lab: Lab[ContrastConfig]
    behaviour: Behaviour
    base: TokenLogprobs

    @property
    def harmful(self) -> Asked:
        """The harmful validation prompts, evenly over categories."""
        return self.behaviour.harmful["validation"]

    @property
    def panel(self) -> tuple[Prompt, ...]:
        """The prompts of the paper's protocol: the first harmful ones."""
        return self.harmful.prompts.prompts[: self.lab.config.paper_prompts]


def make_screen(lab: Lab[ContrastConfig], behaviour: Behaviour) -> Screen:
    """Return the screen of a study; the base model's distributions are computed once."""
    return Screen(lab, behaviour, forced(lab, behaviour.harmless["validation"]))


def forced(lab: Lab[ContrastConfig], asked: Asked) -> TokenLogprobs:
    """Return the model's distributions along the base's own answers, of the edited model inside `lab.edited`."""
    return lab.logprobs_along(asked.prompts, asked.responses, k=lab.config.kl_tokens)


def first_rows(scored: TokenLogprobs) -> torch.Tensor:
    """Return the first distribution of every prompt."""
    return scored.rows[list(scored.offsets[:-1])]


def screen_cell(screen: Screen, recipe: Recipe, place: Place, weight: float) -> dict[str, Any]:
    """Return one cell: shares of prompts of both sides that begin a refusal, how many first tokens moved, mean KL in nats."""
    with screen.lab.edited(recipe.plan(screen.lab.writers, place.layers, weight)):
        first = screen.lab.first_logprobs(screen.harmful.prompts)
        edited = forced(screen.lab, screen.behaviour.harmless["validation"])
    benign = screen.behaviour.refuses_at_once(first_rows(edited))
    refused = screen.behaviour.refuses_at_once(first)
    return {
        "layers": list(place.layers),
        "kind": place.kind,
        "weight": weight,
        "refusal": sum(refused) / len(refused),
        "moved": int(drift.top1_flips(screen.harmful.logprobs, first).sum()),
        "benign": sum(benign) / len(benign),
        "kl_first": float(drift.kl_first_token(first_rows(screen.base), first_rows(edited)).mean()),
        "kl": float(drift.kl_tokens(screen.base, edited).mean()),
    }


def screen_arm(screen: Screen, recipe: Recipe, *, pairs: bool) -> list[dict[str, Any]]:
    """Return every cell of an arm: single layers, all layers, and pairs of the layers that are best alone."""
    config, layers = screen.lab.config, recipe.usable
    found = [screen_cell(screen, recipe, place, w) for place in simple_places(layers) for w in config.weights]
    if pairs and config.pair_layers > 1:
        best = best_layers(found, config.pair_layers)
        places = (Place(pair, "pair") for pair in combinations(sorted(best), 2) if len(layers) > 2)
        found += [screen_cell(screen, recipe, place, w) for place in places for w in config.weights]
    return found


def simple_places(layers: Sequence[int]) -> tuple[Place, ...]:
    """Return every layer alone, and all of them together."""
    single = tuple(Place((layer,), "single") for layer in layers)
    return (*single, Place(tuple(layers), "all")) if len(layers) > 1 else single


def best_layers(cells: Iterable[dict[str, Any]], count: int) -> list[int]:
    """Return the layers that alone, at their best weight, leave the fewest refusals on the screen; ties by KL."""
    single = [cell for cell in cells if cell["kind"] == "single"]
    best: dict[int, tuple[float, float]] = {}
    for cell in single:
        layer, figures = cell["layers"][0], (cell["refusal"], cell["kl"])
        best[layer] = min(best.get(layer, figures), figures)
    return sorted(best, key=lambda layer: best[layer])[:count]


def read_panel(screen: Screen, plan: EditPlan) -> int:
    """Return R: how many of the panel's whole responses refuse by the markers."""
    with screen.lab.edited(plan):
        said = screen.lab.respond(screen.panel, max_new_tokens=screen.lab.config.opening_tokens)
    return sum(v == "refuse" for v in judge_markers(said))


def read_cells(screen: Screen, recipe: Recipe, cells: Sequence[dict[str, Any]], *, base: int) -> list[dict[str, Any]]:
    """Return the cells with R out of the panel, whether it was read, and refusal reduction per unit of KL (null where KL is 0)."""
    return [{**cell, **_read(screen, recipe, cell, base=base)} for cell in cells]


def _read(screen: Screen, recipe: Recipe, cell: dict[str, Any], *, base: int) -> dict[str, Any]:
    spared = spare(cell)
    r = base if spared else read_panel(screen, recipe.plan(screen.lab.writers, cell["layers"], cell["weight"]))
    return {"r": r, "read": not spared, "efficiency": (base - r) / cell["kl"] if cell["kl"] > 0 else None}


def spare(cell: dict[str, Any]) -> bool:
    """Return whether the screen decides: no greedy first token has moved, and KL is small."""
    return cell["moved"] == 0 and cell["kl"] < INERT


def audit(screen: Screen, spared: Sequence[tuple[Recipe, dict[str, Any]]], *, base: int) -> dict[str, Any]:
    """Return how many of a sample of spared cells, read in whole responses, have the R that the screen gave them."""
    config = screen.lab.config
    chosen = random.Random(config.seed).sample(range(len(spared)), min(config.audit_cells, len(spared)))
    right = 0
    for recipe, cell in (spared[i] for i in sorted(chosen)):
        right += read_panel(screen, recipe.plan(screen.lab.writers, cell["layers"], cell["weight"])) == base
    return {"spared": len(spared), "read": len(chosen), "right": right}


def choose(screen: Screen, recipe: Recipe, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the cell that validation chooses, with its refusal rate on whole responses.

    As in the SRA study: of the cells whose refusal rate is at most `max_refusal` by both judges the one with the least KL; if none of the
    best `finalists` is, the one with the lowest refusal rate, ties by KL.
    """
    limit, verified = screen.lab.config.max_refusal, list[dict[str, Any]]()
    for cell in sorted(cells, key=lambda c: rank(c, limit))[: screen.lab.config.finalists]:
        verified.append({**cell, "refusal": _verified(screen, recipe, cell)})
        if verified[-1]["refusal"] <= limit:
            break
    best = min(verified, key=lambda c: rank(c, limit))
    return {**best, "feasible": best["refusal"] <= limit}


def rank(cell: dict[str, Any], limit: float) -> tuple[bool, float, float]:
    """Sort what works by KL before what does not by refusal rate."""
    works = cell["refusal"] <= limit
    return (not works, 0.0 if works else cell["refusal"], cell["kl"])


def _verified(screen: Screen, recipe: Recipe, cell: dict[str, Any]) -> float:
    with screen.lab.edited(recipe.plan(screen.lab.writers, cell["layers"], cell["weight"])):
        said = screen.lab.respond(screen.harmful.prompts, max_new_tokens=screen.lab.config.opening_tokens)
        at_once = screen.behaviour.refuses_at_once(screen.lab.first_logprobs(screen.harmful.prompts))
    by_markers = (v == "refuse" for v in judge_markers(said))
    return sum(a or b for a, b in zip(at_once, by_markers, strict=True)) / len(at_once)
