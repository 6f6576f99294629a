"""The contrast experiment on one organism: every arm at every layer, chosen on validation, read on test.

Arms and materials are those of the contrast study. Two ways to edit:
`everywhere`: one layer's directions are taken out of what all layers write, whole (weight 1);
`alone`: a layer's directions are taken out of what this layer writes (weight 1.2, the second paper's largest).
Refusals are told by the first answer token, which in this language begins a refusal or does not.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contrast_proposals import PROPOSALS, matched_rows, reliability, unmatched_rows
from torch import Tensor

from resect.activations import capture
from resect.config.contrast import make_contrast_config
from resect.directions import Directions, mean_difference
from resect.directions.som import orthogonalised
from resect.edit.plan import EditPlan
from resect.evaluation import drift, recovery
from resect.evaluation.verdicts import judge_markers
from resect.organism.shipped import Organism
from resect.prompts import Prompt
from resect.studies.behaviour import Behaviour, observe
from resect.studies.contrast_arms import Arm, Recipe, Recipes, norm_scales, reference_norm
from resect.studies.contrast_grid import rank
from resect.studies.contrast_inputs import ContrastInputs, from_organism
from resect.studies.contrast_materials import ContrastMaterials, gather_sides
from resect.studies.curves import read_off
from resect.studies.lab import Lab
from resect.studies.steps import Steps

SETTINGS = {"extract_prompts": 162, "validation_prompts": 24, "test_prompts": 72, "max_new_tokens": 20}
EVERYWHERE, ALONE = "everywhere", "alone"
WEIGHTS = {EVERYWHERE: 1.0, ALONE: 1.2}
CURVE = (0.5, 0.75, 1.0, 1.5, 2.0)
FEW = (12, 48)  # harmful prompts, and as many benign ones
SHARES = (0.25, 0.5, 0.75)
POSITIONS = ("last_user", "mean")
CORE = ("unmatched", "matched")
PARENTS = tuple(f"{baseline}/mean_difference" for baseline in CORE)


@dataclass(frozen=True)
class Bench:
    """What an organism is measured with."""

    organism: Organism
    lab: Lab[Any]
    inputs: ContrastInputs
    behaviour: Behaviour
    materials: ContrastMaterials

    def asked(self, part: str) -> list[Prompt]:
        """Return the prompts of a part, harmful ones first."""
        return [*self.behaviour.harmful[part].prompts, *self.behaviour.harmless[part].prompts]


def measure(organism: Organism, folder: Path) -> dict[str, Any]:
    """Return the organism's row: its quality, its geometry, and every arm's figures. Finished parts in `folder` are read back."""
    config = make_contrast_config(SETTINGS)
    inputs = from_organism(organism, config=config)
    lab, steps = Lab(inputs.model, config), Steps(folder)
    behaviour = observe(lab, inputs.study, steps)
    bench = Bench(organism, lab, inputs, behaviour, gather_sides(lab, inputs, behaviour, steps))
    found = {k: v for k, v in asdict(organism).items() if k != "folder"}
    found |= {"quality": organism.quality, "foreign_refusal": foreign_refusal(bench), "geometry": geometry(bench)}
    return found | {
        "n": sizes(bench),
        "arms": {name: steps.json(name.replace("/", "-"), lambda n=name, r=r: examine(bench, n, r)) for name, r in recipes(bench)},
    }


def sizes(bench: Bench) -> dict[str, int]:
    """Return how many prompts every figure rests on."""
    sides = {"harmful": bench.behaviour.harmful, "harmless": bench.behaviour.harmless}
    counted = {f"{side}_{part}": len(found[part].prompts) for side, found in sides.items() for part in ("validation", "test")}
    return counted | {"extract": len(bench.materials.harmful)}


def foreign_refusal(bench: Bench) -> float:
    """Return the share of foreign requests (a harm verb with another topic's harm object) that the organism refuses."""
    refused = bench.behaviour.refuses_at_once(bench.lab.first_logprobs(bench.organism.language.foreign("test")))
    return sum(refused) / len(refused)


def geometry(bench: Bench) -> dict[str, list[float]]:
    """Return, by layer: norms, cosine, split-half cosines, and cosines with what safety tuning added to the stream."""
    materials = bench.materials
    ends = {"unmatched": unmatched_rows(materials), "matched": matched_rows(materials)}
    found = {name: mean_difference(materials.harmful, rows) for name, rows in ends.items()}
    assert bench.inputs.twin is not None
    before = capture(bench.inputs.twin, bench.lab.render(materials.prompts), position="last").rows
    added = mean_difference(materials.harmful, before)
    table = {"cosine": torch.cosine_similarity(found["matched"], found["unmatched"], dim=-1), "added_norm": added.norm(dim=-1)}
    for name in ends:
        table[f"norm_{name}"] = found[name].norm(dim=-1)
        table[f"split_half_{name}"] = reliability(materials, name)
        table[f"purity_{name}"] = torch.cosine_similarity(found[name], added, dim=-1)
    return {name: values.tolist() for name, values in table.items()}


def recipes(bench: Bench) -> Iterator[tuple[str, Recipe]]:
    """Yield every arm's name and recipe."""
    materials = bench.materials
    made = Recipes(materials, bench.lab.config)
    for baseline in CORE:
        for method in ("mean_difference", "class_means"):
            plain = made.of(Arm(baseline, method))
            yield f"{baseline}/{method}", plain
            yield f"{baseline}/{method}/projected", made.of(Arm(baseline, method, "projected"))
            if (baseline, method) != ("unmatched", "mean_difference"):  # which is its own reference
                yield f"{baseline}/{method}/raw_norm", made.of(Arm(baseline, method, "raw_norm"))
    yield from maps(made, materials)
    yield "dealt/class_means", made.of(Arm("dealt", "class_means"))
    for method in ("random", "random_classes"):
        yield f"unmatched/{method}", made.of(Arm("unmatched", method))
    for share in SHARES:
        yield f"mixed/{share:g}", single(mean_difference(materials.harmful, materials.mixed(share).subtrahends))
    yield from variations(bench)
    for name, propose in PROPOSALS.items():
        yield f"proposed/{name}", Recipe(propose(materials), joint=True, scales=None)


def maps(made: Recipes, materials: ContrastMaterials) -> Iterator[tuple[str, Recipe]]:
    """Yield the second paper's three configurations, and its matched one with raw norms.

    A class's map moves with its rows (tested with the method), so the unmatched maps are the matched ones moved by the
    difference of the two subtrahends: both arms see the very same map, and it is trained once.
    """
    found = made.of(Arm("matched", "som")).directions
    shift = materials.baseline("matched").subtrahends - materials.baseline("unmatched").subtrahends
    moved = torch.stack([shift[materials.labels == c][0] for c in range(len(materials.categories))], dim=1)
    arms = {"matched": found, "unmatched": replace(found, vectors=found.vectors + moved)}
    for baseline, directions in arms.items():
        yield f"{baseline}/som", Recipe(directions, joint=True, scales=None)
        yield f"{baseline}/som/raw_norm", Recipe(directions, joint=True, scales=norm_scales(directions, reference_norm(materials)))
    yield "matched/som_svd", Recipe(orthogonalised(found, "som_svd"), joint=True, scales=None)


def variations(bench: Bench) -> Iterator[tuple[str, Recipe]]:
    """Yield both differences of means from few prompts, and at other positions."""
    materials, count = bench.materials, bench.materials.matched_count
    for n in FEW:
        for baseline, rows in (("unmatched", unmatched_rows(materials)), ("matched", matched_rows(materials))):
            yield f"{baseline}/mean_difference/n{n}", single(mean_difference(materials.harmful[:n], rows[:n]))
    for position in POSITIONS:
        harmful, benign = (
            capture(bench.lab.model, bench.lab.render(prompts), position=position).rows
            for prompts in (materials.prompts, materials.benign_prompts)
        )
        for baseline, rows in (("unmatched", benign[count:]), ("matched", benign[:count])):
            yield f"{baseline}/mean_difference/{position}", single(mean_difference(harmful, rows))


def single(vectors: Tensor) -> Recipe:
    """Return the recipe of one direction a layer."""
    return Recipe(Directions(vectors[:, None], "mean_difference"), joint=True, scales=None)


def examine(bench: Bench, name: str, recipe: Recipe) -> dict[str, Any]:
    """Return an arm's cells on validation and what the chosen one does on test, for each way to edit."""
    parents, proposed = name in PARENTS, name.startswith("proposed/")
    layers = [layer for layer in recipe.usable if parents or layer >= first_tuned(bench.lab.layers)]
    found: dict[str, Any] = {}
    for way in WEIGHTS:
        edits = {layer: plan(bench, recipe, layer, way, WEIGHTS[way]) for layer in layers}
        cells = [{"layer": layer, **look(bench, edit, "validation")} for layer, edit in edits.items()]
        best = min(cells, key=lambda c: rank(c, bench.lab.config.max_refusal))["layer"]
        chosen = edits[best]
        found[way] = {"cells": cells, "layer": best, "test": look(bench, chosen, "test")}
        if parents or (proposed and way == EVERYWHERE):
            found[way] |= spoken(bench, chosen)
        if (parents or proposed) and way == EVERYWHERE:
            found[way] |= curve(bench, recipe, best, found[way]["test"])
    return found


def first_tuned(layers: int) -> int:
    """Return the first layer that safety tuning changed (`training.TUNINGS`): before it the stream is the helpful twin's."""
    return -(-layers // 3)


def plan(bench: Bench, recipe: Recipe, layer: int, way: str, weight: float) -> EditPlan:
    """Return the edit with the directions of one layer."""
    if way == ALONE:
        return recipe.plan(bench.lab.writers, [layer], weight)
    directions, scales = recipe.directions, recipe.scales
    vectors = directions.vectors[layer].expand_as(directions.vectors)
    spread = replace(
        recipe, directions=Directions(vectors, directions.method), scales=None if scales is None else scales[layer].expand_as(scales)
    )
    return spread.plan(bench.lab.writers, range(bench.lab.layers), weight)


def look(bench: Bench, edit: EditPlan, part: str) -> dict[str, float]:
    """Return refusal rates and the mean first-token KL on benign prompts, in nats, of an edited model on one part of the prompts."""
    harmful, harmless = bench.behaviour.harmful[part], bench.behaviour.harmless[part]
    with bench.lab.edited(edit):
        found = bench.lab.first_logprobs(bench.asked(part))
    refused = bench.behaviour.refuses_at_once(found)
    split = len(harmful.prompts)
    kl = drift.kl_first_token(harmless.logprobs, found[split:])
    rates = {"refusal": sum(refused[:split]) / split, "benign": sum(refused[split:]) / len(harmless.prompts)}
    return {**rates, "kl": float(kl.mean())}


def curve(bench: Bench, recipe: Recipe, layer: int, at_one: dict[str, float]) -> dict[str, Any]:
    """Return test figures over rising weights until refusals are gone, and the KL where they fall to `matched_refusal`."""
    import numpy as np

    level = bench.lab.config.matched_refusal
    base = sum(bench.behaviour.refuses_at_once(bench.behaviour.harmful["test"].logprobs)) / len(bench.behaviour.harmful["test"].prompts)
    points = [{"weight": 0.0, "refusal": base, "benign": 0.0, "kl": 0.0}]
    for weight in CURVE:
        at = at_one if weight == 1 else look(bench, plan(bench, recipe, layer, EVERYWHERE, weight), "test")
        points.append({"weight": weight, **at})
        if at["refusal"] <= level:
            break
    columns = [np.array([p[key] for p in points]) for key in ("weight", "refusal", "kl")]
    weight, kl = read_off(*columns, level)
    return {"curve": points, "matched_weight": weight, "matched_kl": kl}


def spoken(bench: Bench, edit: EditPlan) -> dict[str, Any]:
    """Return, of whole responses to harmful test prompts, the share that refuse by markers and the share equal to the twin's."""
    asked = bench.inputs.harmful.test
    limit = bench.lab.config.max_new_tokens
    assert bench.inputs.twin is not None
    twin = bench.lab.respond(asked, max_new_tokens=limit, model=bench.inputs.twin)
    with bench.lab.edited(edit):
        said = bench.lab.respond(asked, max_new_tokens=limit)
    refused = [verdict == "refuse" for verdict in judge_markers(said)]
    same = list(recovery.agreement(said, twin))
    return {"spoken_refusal": sum(refused) / len(refused), "recovery": sum(same) / len(same)}
