"""The arms of the contrast study: a baseline, a direction method, and what is done to the directions.

A new variant is one entry of `VARIANTS`; a new baseline one matrix in `contrast_materials`; a new method one entry of `directions.METHODS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect import cleaning
from resect.cleaning import KeepTerm
from resect.config import ContrastConfig
from resect.directions import METHODS, Baseline, Directions, mean_difference
from resect.directions.methods import Find
from resect.directions.som import Grid, orthogonalised, som
from resect.edit.oblique import oblique_plan
from resect.edit.plan import EditPlan, WriterLike, make_plan
from resect.errors import UserError, unknown_name
from resect.studies.contrast_materials import ContrastMaterials

PLAIN = "plain"
CORE = ("unmatched", "matched", "paired")
"""Baselines that every method and every variant is run on; the others, controls themselves, have the first two methods only."""
RANDOM = {False: "random", True: "random_classes"}
"""The control of methods that find one direction a layer, and of those that find several."""
SEVEN_OF_NINE = 7 / 9
"""The second paper has seven directions on the unmatched baseline and nine on the matched one, and does not say why."""


@dataclass(frozen=True)
class Arm:
    """One way to make an edit, named `baseline/method` or `baseline/method/variant`."""

    baseline: str
    method: str
    variant: str = PLAIN

    @property
    def name(self) -> str:
        """The arm's name in every file."""
        return "/".join([self.baseline, self.method, *([] if self.variant == PLAIN else [self.variant])])

    @property
    def file(self) -> str:
        """The arm's name as a part of file names."""
        return self.name.replace("/", "_")

    @property
    def control(self) -> bool:
        """Whether it is a control of another arm."""
        return self.variant != PLAIN or METHODS[self.method].control or self.baseline not in CORE

    @property
    def plain(self) -> "Arm":
        """The arm that this one is a variant of (itself, if it is none)."""
        return replace(self, variant=PLAIN)


Change = Callable[[Directions, ContrastMaterials, Baseline], Directions]


@dataclass(frozen=True)
class Variant:
    """What a variant changes: the directions, or how they are removed; `applies` says of which arms there is one."""

    label: str
    applies: Callable[[Arm], bool]
    change: Change = lambda found, _materials, _baseline: found


def arms(config: ContrastConfig, *, paired: bool) -> tuple[Arm, ...]:
    """Return every arm of the settings, plain ones first.

    Raises:
        UserError: a method that does not exist, or a control named as a method.
    """
    methods = [name for name, method in METHODS.items() if not method.control]
    for name in config.methods:
        if name not in methods:
            raise unknown_name("method", name, methods)
    named = [b for b in config.baselines if b != "paired" or paired]
    plain = [Arm(b, m) for b in named for m in (config.methods if b in CORE else config.methods[:2])]
    changed = [replace(a, variant=v) for v in config.variants if v in VARIANTS for a in plain if VARIANTS[v].applies(a)]
    several = dict.fromkeys(METHODS[m].several for m in config.methods)
    random = [Arm("unmatched", RANDOM[kind]) for kind in several] if "random" in config.variants and "unmatched" in named else []
    return (*plain, *random, *changed)


@dataclass(frozen=True, eq=False)
class Recipe:
    """An arm's directions for one model, ready to be edited with; `scales` weighs each direction where norms are raw."""

    directions: Directions
    joint: bool
    scales: Float[Tensor, "layer direction"] | None

    @property
    def usable(self) -> tuple[int, ...]:
        """The layers at which no direction is zero."""
        return tuple((self.directions.vectors.norm(dim=-1) > 0).all(1).nonzero().flatten().tolist())

    def plan(self, writers: Sequence[WriterLike], layers: Sequence[int], weight: float) -> EditPlan:
        """Return the edit that takes `weight` of every direction out of what the blocks of these layers add, each its own directions."""
        vectors, read = self.directions.vectors, self.directions.read
        strengths = torch.zeros(len(vectors))
        strengths[list(layers)] = weight
        if read is not None:
            return oblique_plan(writers, vectors, read, strengths)
        return make_plan(writers, vectors, strengths, joint=self.joint, scales=self.scales)


class Recipes:
    """Makes each arm's recipe, the directions of a plain arm once."""

    def __init__(self, materials: ContrastMaterials, config: ContrastConfig) -> None:
        self.materials, self.config = materials, config
        self._found: dict[tuple[str, str], Directions] = {}

    def of(self, arm: Arm) -> Recipe:
        """Return the recipe of an arm; raises what its method raises, and `UserError` if no layer has all its directions."""
        baseline = self.materials.baseline(arm.baseline)
        found = self._directions(arm, baseline)
        if self.config.directions and METHODS[arm.method].several:
            found = found.first(self.config.directions)
        if arm.variant != PLAIN:
            found = VARIANTS[arm.variant].change(found, self.materials, baseline)
        scales = norm_scales(found, reference_norm(self.materials)) if arm.variant == "raw_norm" else None
        recipe = Recipe(found, joint=arm.variant != "sequential", scales=scales)
        if not recipe.usable:
            raise UserError(
                f"Every layer of {arm.name} has a direction of length zero, so there is nothing to edit; look whether the harmful prompts "
                "and what is subtracted from them are the same."
            )
        return recipe

    def _directions(self, arm: Arm, baseline: Baseline) -> Directions:
        key = (arm.baseline, arm.method)
        if key not in self._found:
            self._found[key] = self._find(arm, baseline)
        return self._found[key]

    def _find(self, arm: Arm, baseline: Baseline) -> Directions:
        # Maps take seconds to train, and these two methods train the same ones.
        if arm.method == "som_svd":
            return orthogonalised(self._directions(replace(arm, method="som", variant=PLAIN), baseline), "som_svd")
        if arm.method == "som" and arm.baseline != "matched" and _constant(baseline, self.materials.labels):
            matched = self.materials.baseline("matched")
            return shifted(self._directions(Arm("matched", "som"), matched), matched, baseline, self.materials.labels)
        return find(self.materials, baseline, arm.method, self.config)


def _constant(baseline: Baseline, labels: Int[Tensor, " prompt"]) -> bool:
    """Return whether all prompts of a class have the same subtrahend."""
    return all(bool((baseline.weights[labels == c] == baseline.weights[labels == c][0]).all()) for c in range(int(labels.max()) + 1))


def shifted(found: Directions, old: Baseline, new: Baseline, labels: Int[Tensor, " prompt"]) -> Directions:
    """Return the winners of maps (one a class) on another baseline: with one subtrahend a class a map is that of the activations, moved.

    So the arms of the second paper differ in what is subtracted from the same winners, and a map is trained once (seconds each).
    """
    moved = [(old.subtrahends[labels == c][0] - new.subtrahends[labels == c][0]).double() for c in range(int(labels.max()) + 1)]
    winners = found.vectors.shape[1] // len(moved)
    return replace(found, vectors=(found.vectors.double() + torch.stack(moved, dim=1).repeat_interleave(winners, dim=1)).float())


def find(materials: ContrastMaterials, baseline: Baseline, method: str, config: ContrastConfig) -> Directions:
    """Return a method's directions on a baseline; raises what the method raises."""
    finder: Find = partial(som, grid=map_grid(config)) if method == "som" else METHODS[method].find
    return finder(materials.harmful, baseline, labels=materials.labels, seed=config.seed)


def map_grid(config: ContrastConfig) -> Grid:
    """Return how maps are trained."""
    return Grid(
        rows=config.som_rows,
        columns=config.som_columns,
        iterations=config.som_iterations,
        learning_rate=config.som_learning_rate,
        sigma=config.som_sigma,
        winners=config.som_winners,
        read=config.som_read,
        training=config.som_training,
    )


def reference_norm(materials: ContrastMaterials) -> Float[Tensor, " layer"]:
    """Return the norm of the unmatched difference of means per layer: directions of this norm are removed whole where norms are raw."""
    return mean_difference(materials.harmful, materials.baseline("unmatched").subtrahends).norm(dim=-1)


def norm_scales(found: Directions, reference: Float[Tensor, " layer"]) -> Float[Tensor, "layer direction"]:
    """Return (|v| / reference)^2: W - w r r^T W with r = v / reference is an edit of strength w times this along v."""
    return (found.vectors.norm(dim=-1) / reference[:, None].clamp_min(1e-12)).square()


def _without(terms: Callable[[ContrastMaterials, Baseline], KeepTerm]) -> Change:
    def change(found: Directions, materials: ContrastMaterials, baseline: Baseline) -> Directions:
        return replace(found, vectors=cleaning.clean(found.vectors, [terms(materials, baseline)]))

    return change


def _harmless_mean(_materials: ContrastMaterials, baseline: Baseline) -> KeepTerm:
    return cleaning.harmless_mean_term(baseline.subtrahends.double().mean(0).float())


def topics(materials: ContrastMaterials, _baseline: Baseline | None = None) -> KeepTerm:
    """Return the hard term of the topic means (less the unmatched mean)."""
    return KeepTerm("topics", materials.topic_means, 0.0)


def _fewer(found: Directions, _materials: ContrastMaterials, _baseline: Baseline) -> Directions:
    return found.first(max(1, round(SEVEN_OF_NINE * found.vectors.shape[1])))


def _core(arm: Arm) -> bool:
    return arm.baseline in CORE and not METHODS[arm.method].name.startswith("leace")


def _several(arm: Arm) -> bool:
    return _core(arm) and METHODS[arm.method].several


VARIANTS = {
    "raw_norm": Variant("vectors not normalised: weight times (norm / norm of the unmatched difference) squared", _core),
    "projected": Variant("the mean of what is subtracted projected out", _core, _without(_harmless_mean)),
    "topic_free": Variant("the span of the topic means projected out", _core, _without(topics)),
    "sequential": Variant("directions removed one after another", _several),
    "fewer": Variant("seven ninths of the directions, the most important", lambda a: _several(a) and a.baseline == "unmatched", _fewer),
}
