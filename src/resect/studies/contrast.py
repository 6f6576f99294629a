"""The contrast study (arXiv 2603.22061) with the controls that the paper lacks: does a topic-matched baseline fail here, and why?

`run` is the table of contents: observe the base, take activations, describe the baselines, screen the grid of every edit, read it by the
paper's protocol, choose a cell for every arm and score it once, match arms at equal refusal, vary the dose, test. Each step is kept in the
run folder, so a killed run goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resect.config import ContrastConfig
from resect.edit.plan import EditPlan
from resect.studies import curves
from resect.studies.behaviour import Behaviour, observe
from resect.studies.bench import twin_ids
from resect.studies.contrast_arms import PLAIN, Arm, Recipe, Recipes, arms
from resect.studies.contrast_doses import run_dose, share_doses, size_doses
from resect.studies.contrast_geometry import capture_of_pairs, geometry
from resect.studies.contrast_grid import Screen, audit, best_layers, choose, forced, make_screen, read_cells, read_panel, screen_arm, spare
from resect.studies.contrast_inputs import ContrastInputs
from resect.studies.contrast_materials import ContrastMaterials, gather_sides, paired
from resect.studies.contrast_same import one_edit, same_edits
from resect.studies.contrast_scores import Examiner, compare, examine, summary
from resect.studies.contrast_topics import pair_similarity
from resect.studies.contrast_verdicts import described, pairs, protocol_verdict, verdicts
from resect.studies.inputs import near_twins
from resect.studies.lab import Lab
from resect.studies.steps import Steps

FORMAT = "resect.contrast/1"
PLACES = ("any", "single")
"""Where an arm's cell is chosen: among all layers together and each alone, which every arm has, or among those that edit one layer."""
PAPER_VARIANTS = (PLAIN, "raw_norm")
"""Variants that are read by the paper's protocol: the paper does not say whether its directions have norm 1."""


@dataclass(frozen=True, eq=False)
class ContrastResult:
    """A finished study: the document of `contrast.json`, and the values that other stages can start from."""

    document: dict[str, Any]
    arms: tuple[Arm, ...]
    recipes: Recipes
    materials: ContrastMaterials


@dataclass(frozen=True, eq=False)
class Desk:
    """What all steps share."""

    inputs: ContrastInputs
    behaviour: Behaviour
    materials: ContrastMaterials
    recipes: Recipes
    arms: tuple[Arm, ...]
    same: Mapping[Arm, Arm]
    screen: Screen
    examiner: Examiner
    steps: Steps

    @property
    def lab(self) -> Lab[ContrastConfig]:
        """The model with its writers and the settings."""
        return self.screen.lab

    @property
    def config(self) -> ContrastConfig:
        """The settings of the study."""
        return self.lab.config

    def recipe(self, arm: Arm) -> Recipe:
        """Return an arm's recipe, of an edit that several arms make always the first one's: so all of them have the same bytes."""
        return self.recipes.of(self.same.get(arm, arm))

    def plan(self, arm: Arm, cell: dict[str, Any]) -> EditPlan:
        """Return the edit of an arm's cell."""
        return self.recipe(arm).plan(self.lab.writers, cell["layers"], cell["weight"])


def run(inputs: ContrastInputs, config: ContrastConfig, steps: Steps) -> ContrastResult:
    """Return the finished study; steps that the run folder already holds are read back.

    Raises:
        UserError: see `behaviour.observe`, `contrast_arms.arms`, `contrast_materials.gather_sides` and the direction methods.
    """
    desk = prepare(inputs, config, steps)
    measured = steps.json("geometry", lambda: _geometry(desk))
    grids, chosen = dict[str, Any](), dict[str, Any]()
    for arm in desk.arms:
        grids[arm.name] = steps.json(f"grid_{arm.file}", lambda a=arm: _grid(desk, a, grids))
    base = steps.json("panel", lambda: read_panel(desk.screen, EditPlan(())))
    for arm in (a for a in desk.arms if a.variant in PAPER_VARIANTS):
        grids[arm.name] = steps.json(f"read_{arm.file}", lambda a=arm: _read(desk, a, grids, base=base))
    for arm in desk.arms:
        chosen[arm.name] = steps.json(f"choice_{arm.file}", lambda a=arm: _choose(desk, a, grids[a.name], chosen))
    untouched = steps.json("test_base", lambda: examine(desk.examiner, EditPlan(())))
    results = {"base": dict.fromkeys(PLACES, untouched)}
    for arm in desk.arms:
        results[arm.name] = steps.json(f"test_{arm.file}", lambda a=arm: _test(desk, a, chosen, results))
    return ContrastResult(measured | _document(desk, grids, chosen, results, base=base), desk.arms, desk.recipes, desk.materials)


def prepare(inputs: ContrastInputs, config: ContrastConfig, steps: Steps) -> Desk:
    """Return what all steps share: the base observed, activations taken; raises what `run` raises."""
    found = arms(config, paired=paired(inputs, config))
    lab = Lab(inputs.model, config)
    behaviour = observe(lab, inputs.study, steps)
    materials = gather_sides(lab, inputs, behaviour, steps)
    twin = None
    if inputs.twin is not None:
        asked = inputs.harmful.test
        twin = lab.read(asked.prompts, steps.json("twin_test", lambda: twin_ids(lab, inputs.study, asked)))
    examiner = Examiner(lab, behaviour, forced(lab, behaviour.harmless["test"]), twin)
    recipes = Recipes(materials, config)
    same = same_edits({arm: recipes.of(arm) for arm in found}, lab.writers)
    return Desk(inputs, behaviour, materials, recipes, found, same, make_screen(lab, behaviour), examiner, steps)


def _geometry(desk: Desk) -> dict[str, Any]:
    """Return the parts of the document that need no edit."""
    recipes = {arm: desk.recipes.of(arm) for arm in desk.arms}
    baselines = tuple(dict.fromkeys(a.baseline for a in desk.arms))
    return {
        "geometry": geometry(desk.materials, baselines, angle=desk.config.angle, seed=desk.config.seed),
        "capture": capture_of_pairs({arm.name: r for arm, r in recipes.items() if arm.variant == PLAIN}, desk.materials.held_out),
    }


def _grid(desk: Desk, arm: Arm, grids: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found = _same_cells(desk, arm, grids)
    return screen_arm(desk.screen, desk.recipe(arm), pairs=not arm.control) if found is None else found


def _read(desk: Desk, arm: Arm, grids: Mapping[str, list[dict[str, Any]]], *, base: int) -> list[dict[str, Any]]:
    found = _same_cells(desk, arm, grids)
    return read_cells(desk.screen, desk.recipe(arm), grids[arm.name], base=base) if found is None or "r" not in found[0] else found


def _same_cells(desk: Desk, arm: Arm, grids: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
    """Return the cells of the arm that makes the same edit (controls have no pairs of layers), None if there is no such arm."""
    first = desk.same.get(arm)
    return None if first is None else [cell for cell in grids[first.name] if cell["kind"] != "pair" or not arm.control]


def _choose(desk: Desk, arm: Arm, cells: list[dict[str, Any]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best cell of all layers together and each alone, and the best that edits one layer: the paper's setting.

    Pairs of layers are not chosen: controls have none, and would be compared with what they could not choose.
    """
    if arm in desk.same:
        return chosen[desk.same[arm].name]
    recipe = desk.recipe(arm)
    single = [cell for cell in cells if cell["kind"] == "single"]
    return {"any": choose(desk.screen, recipe, [c for c in cells if c["kind"] != "pair"]), "single": choose(desk.screen, recipe, single)}


def _test(desk: Desk, arm: Arm, chosen: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    if arm in desk.same:
        return results[desk.same[arm].name]
    cells = chosen[arm.name]
    found = {"any": examine(desk.examiner, desk.plan(arm, cells["any"]))}
    same = all(cells["any"][key] == cells["single"][key] for key in ("layers", "weight"))
    return found | {"single": found["any"] if same else examine(desk.examiner, desk.plan(arm, cells["single"]))}


def _document(desk: Desk, grids: dict[str, Any], chosen: dict[str, Any], results: dict[str, Any], *, base: int) -> dict[str, Any]:
    seed = desk.config.seed
    asked, same = pairs(desk.arms), {arm.name: first.name for arm, first in desk.same.items()}
    compared = list(dict.fromkeys((a, b) for _, a, b in asked if not one_edit(a, b, same)))
    by_place = {place: {name: found[place] for name, found in results.items()} for place in PLACES}
    tests = [row for place, found in by_place.items() for row in compare(found, compared, place, seed=seed)]
    panel = len(desk.screen.panel)
    protocol = [protocol_verdict(a.name, grids[a.name], base=base, panel=panel) for a in desk.arms if a.variant in PAPER_VARIANTS]
    return {
        "format": FORMAT,
        "study": "contrast",
        "model": _model(desk),
        "prompts": _prompts(desk),
        "arms": {
            a.name: {**described(a), "order": i, "chosen": chosen[a.name], "count": _count(desk, a), "same_as": same.get(a.name)}
            for i, a in enumerate(desk.arms)
        },
        "evaluation": {name: {place: summary(found[place], seed=seed) for place in PLACES} for name, found in results.items()},
        "grids": grids,
        "protocol": {
            "panel": panel,
            "base": base,
            "arms": protocol,
            "audit": desk.steps.json("audit", lambda: _audit(desk, grids, base=base)),
        },
        "matched": desk.steps.json("matched", lambda: _matched(desk, chosen)),
        "doses": _doses(desk, grids),
        "comparisons": tests,
        "verdicts": verdicts(tests, asked, results, same),
    }


def _model(desk: Desk) -> dict[str, Any]:
    model = desk.inputs.model
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "architecture": type(model.network).__name__,
        "layers": desk.lab.layers,
        "d_model": model.d_model,
    }


def _prompts(desk: Desk) -> dict[str, Any]:
    inputs, materials = desk.inputs, desk.materials
    return {
        **desk.behaviour.counts,
        "filtered": desk.config.filter_by_behaviour,
        "near_duplicates": near_twins(inputs.study),
        "used": {
            "harmful": len(materials.prompts),
            "matched": materials.matched_count,
            "unmatched": len(materials.benign) - materials.matched_count,
            "held_out_pairs": len(materials.held_out),
        },
        "left_out": materials.left_out,
        "categories": {c: int((materials.labels == i).sum()) for i, c in enumerate(materials.categories)},
        "predicted": inputs.predictions,
        "similarity": pair_similarity(inputs.harmful.extract.prompts, inputs.matched.extract.prompts, seed=desk.config.seed),
        "paired": paired(inputs, desk.config),
    }


def _count(desk: Desk, arm: Arm) -> int:
    return desk.recipes.of(arm).directions.vectors.shape[1]


def _audit(desk: Desk, grids: dict[str, Any], *, base: int) -> dict[str, Any]:
    spared: list[tuple[Recipe, dict[str, Any]]] = []
    for arm in (a for a in desk.arms if a.variant in PAPER_VARIANTS):
        recipe = desk.recipe(arm)
        spared += [(recipe, cell) for cell in grids[arm.name] if spare(cell)]
    return audit(desk.screen, spared, base=base)


def _matched(desk: Desk, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the KL of every plain arm that is no control at the matched refusal rate, and ratios to the unmatched baseline."""
    compared = [arm for arm in desk.arms if not arm.control]
    traces: dict[str, list[dict[str, Any]]] = {}
    for arm in compared:
        traces[arm.name] = desk.steps.json(f"curve_{arm.file}", lambda a=arm: _trace(desk, a, chosen[a.name]["any"], traces))
    ratios = [(a, b) for question, a, b in pairs(compared) if question in ("matched", "paired")]
    base = [v == "refuse" for v in desk.behaviour.harmful["test"].verdicts]
    found = curves.matched(traces, base=base, refusal=desk.config.matched_refusal, pairs=ratios, seed=desk.config.seed)
    return {**found, "curves": {arm: curves.summary(points, seed=desk.config.seed) for arm, points in traces.items()}}


def _trace(desk: Desk, arm: Arm, cell: dict[str, Any], traces: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the arm's points over rising weights at its chosen layers, up to the second at or below the matched refusal rate."""
    if arm in desk.same:
        return traces[desk.same[arm].name]
    points: list[dict[str, Any]] = []
    for weight in sorted(desk.config.curve_weights):
        result = examine(desk.examiner, desk.plan(arm, {**cell, "weight": weight}))
        kept = {key: result[key] for key in ("refused", "benign_refused", "recovered")}
        points.append({"strength": weight, **kept, "kl": result["kl_first"]})
        if len(points) > 1 and all(sum(p["refused"]) <= desk.config.matched_refusal * len(p["refused"]) for p in points[-2:]):
            break
    return points


def _doses(desk: Desk, grids: dict[str, Any]) -> list[dict[str, Any]]:
    plain = Arm("unmatched", "mean_difference").name
    singles = best_layers(grids[plain], 2) if plain in grids else []
    doses = {**share_doses(desk.materials, desk.config), **size_doses(desk.materials, desk.config)}
    return [
        {**what, **desk.steps.json(f"dose_{name}", lambda r=recipe: run_dose(desk.screen, desk.examiner, r, singles))}
        for name, (what, recipe) in doses.items()
    ]
