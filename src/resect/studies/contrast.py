"""The contrast study (arXiv 2603.22061) with the controls that the paper lacks: does a topic-matched baseline fail here, and why?

`run` is the table of contents: observe the base, take activations, describe the baselines, screen the grid of every edit, read it by the
paper's protocol, choose a cell for every arm and score it once, match arms at equal refusal, vary the dose, test. Each step is kept in the
run folder, so a killed run goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from resect.config import ContrastConfig
from resect.edit.plan import EditPlan
from resect.studies import curves
from resect.studies.behaviour import Behaviour, observe
from resect.studies.bench import twin_responses
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
from resect.studies.side_by_side import side_by_side
from resect.studies.steps import Steps

T = TypeVar("T")
Tried = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]

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

    def together(self, tasks: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """Return the results of tasks that do not need one another (`side_by_side`)."""
        return side_by_side(self.lab.model, self.steps, tasks, processes=self.config.processes)


def run(inputs: ContrastInputs, config: ContrastConfig, steps: Steps) -> ContrastResult:
    """Return the finished study; steps that the run folder already holds are read back.

    Raises:
        UserError: see `behaviour.observe`, `contrast_arms.arms`, `contrast_materials.gather_sides` and the direction methods.
    """
    desk = prepare(inputs, config, steps)
    measured = steps.json("geometry", lambda: _geometry(desk))
    base = steps.json("panel", lambda: read_panel(desk.screen, EditPlan(())))
    untouched = steps.json("test_base", lambda: examine(desk.examiner, EditPlan(())))
    tried = desk.together({arm.name: partial(_try, desk, arm, base=base) for arm in desk.arms if arm not in desk.same})
    tried |= {arm.name: _as_tried(desk, arm, tried[first.name], base=base) for arm, first in desk.same.items()}
    grids, chosen, tested = ({arm.name: tried[arm.name][i] for arm in desk.arms} for i in range(3))
    results = {"base": dict.fromkeys(PLACES, untouched), **tested}
    return ContrastResult(measured | _document(desk, grids, chosen, results, base=base), desk.arms, desk.recipes, desk.materials)


def prepare(inputs: ContrastInputs, config: ContrastConfig, steps: Steps) -> Desk:
    """Return what all steps share: the base observed, activations taken; raises what `run` raises."""
    found = arms(config, paired=paired(inputs, config))
    lab = Lab(inputs.model, config, steps.cache)
    behaviour = observe(lab, inputs.study, steps)
    materials = gather_sides(lab, inputs, behaviour, steps)
    twin = twin_responses(lab, inputs.study, steps, "test") if inputs.twin is not None else None
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


def _try(desk: Desk, arm: Arm, *, base: int) -> Tried:
    """Return the cells of an arm's grid, those of them that were chosen, and their test results."""
    cells = desk.steps.json(f"grid_{arm.file}", lambda: screen_arm(desk.screen, desk.recipe(arm), pairs=not arm.control))
    if arm.variant in PAPER_VARIANTS:
        cells = _read(desk, arm, cells, base=base)
    chosen = desk.steps.json(f"choice_{arm.file}", lambda: _choose(desk, arm, cells))
    return cells, chosen, desk.steps.json(f"test_{arm.file}", lambda: _test(desk, arm, chosen))


def _as_tried(desk: Desk, arm: Arm, first: Tried, *, base: int) -> Tried:
    """Return of an arm what was found of the one that makes the same edit; controls have no pairs of layers."""
    cells = [cell for cell in first[0] if cell["kind"] != "pair" or not arm.control]
    if arm.variant in PAPER_VARIANTS and "r" not in cells[0]:
        cells = _read(desk, arm, cells, base=base)
    return cells, *first[1:]


def _read(desk: Desk, arm: Arm, cells: list[dict[str, Any]], *, base: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = desk.steps.json(f"read_{arm.file}", lambda: read_cells(desk.screen, desk.recipe(arm), cells, base=base))
    return found


def _choose(desk: Desk, arm: Arm, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best cell of all layers together and each alone, and the best that edits one layer: the paper's setting.

    Pairs of layers are not chosen: controls have none, and would be compared with what they could not choose.
    """
    recipe = desk.recipe(arm)
    single = [cell for cell in cells if cell["kind"] == "single"]
    return {"any": choose(desk.screen, recipe, [c for c in cells if c["kind"] != "pair"]), "single": choose(desk.screen, recipe, single)}


def _test(desk: Desk, arm: Arm, cells: dict[str, Any]) -> dict[str, Any]:
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
    own = {arm: desk.same.get(arm, arm) for arm in compared}
    measured = desk.together({arm.name: partial(_trace, desk, arm, chosen[arm.name]["any"]) for arm in dict.fromkeys(own.values())})
    traces = {arm.name: measured[first.name] for arm, first in own.items()}
    ratios = [(a, b) for question, a, b in pairs(compared) if question in ("matched", "paired")]
    base = [v == "refuse" for v in desk.behaviour.harmful["test"].verdicts]
    found = curves.matched(traces, base=base, refusal=desk.config.matched_refusal, pairs=ratios, seed=desk.config.seed)
    return {**found, "curves": {arm: curves.summary(points, seed=desk.config.seed) for arm, points in traces.items()}}


def _trace(desk: Desk, arm: Arm, cell: dict[str, Any]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = desk.steps.json(f"curve_{arm.file}", lambda: _points(desk, arm, cell))
    return points


def _points(desk: Desk, arm: Arm, cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arm's points over rising weights at its chosen layers, up to the second at or below the matched refusal rate."""
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

    def dose(name: str) -> dict[str, Any]:
        what, recipe = doses[name]
        return {**what, **desk.steps.json(f"dose_{name}", lambda: run_dose(desk.screen, desk.examiner, recipe, singles))}

    return list(desk.together({name: partial(dose, name) for name in doses}).values())
