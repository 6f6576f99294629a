"""Every knob of the contrast study."""

from typing import Any, Literal

from pydantic import Field, model_validator

from resect.config.base import StudyConfig
from resect.config.files import checked
from resect.errors import UserError, unknown_name

BASELINES = ("unmatched", "matched", "paired", "other_topics", "dealt")
"""Every contrast baseline, in the order of the tables: what is subtracted from a harmful prompt's activation."""
VARIANTS = ("raw_norm", "projected", "topic_free", "sequential", "fewer", "random")
"""Every control of an arm: what is done to its directions, or in their place."""

ORGANISM: dict[str, Any] = {"max_new_tokens": 32, "opening_tokens": 12, "validation_prompts": 30}
"""Settings of organisms: they have six layers and answer in a few words."""
QUICK: dict[str, Any] = {
    "baselines": ["unmatched", "matched", "paired"],
    "methods": ["mean_difference", "som"],
    "validation_prompts": 20,
    "pair_layers": 0,
    "curve_weights": [0.5, 1.0, 1.5],
    "shares": [0.0, 0.5, 1.0],
    "sizes": [16, 64],
    "audit_cells": 4,
}
"""Settings of a study in a minute or two: the same questions with fewer arms, layers and doses."""


class ContrastConfig(StudyConfig):
    """The settings of `resect contrast`. Where the paper prints no value there is an option here, never an assumption."""

    kl_tokens: int = Field(default=50, ge=1)
    """Tokens of the base's own response over which the teacher-forced KL is taken (fewer where the response is shorter)."""

    baselines: tuple[str, ...] = BASELINES
    """Contrast baselines: what is subtracted from each harmful prompt."""
    methods: tuple[str, ...] = ("mean_difference", "som", "som_svd", "svd")
    """Direction methods, each run on every baseline (`dealt` and `other_topics` with the first and second only)."""
    variants: tuple[str, ...] = VARIANTS
    """Controls run on every arm that they apply to; empty runs the plain arms alone."""
    directions: int | None = Field(default=None, ge=1)
    """Directions a layer of methods that find several; unset takes one a category, the same number on every baseline."""
    predict_categories: bool = False
    """Give harmful and matched prompts without a category the nearest mean of the harmful ones that have one, with its accuracy."""
    angle: float = Field(default=10.0, gt=0, lt=90)
    """Angle to the direction of endless prompts, in degrees, for which the report says how many prompts it would take."""

    som_rows: int = Field(default=3, ge=1)
    """Rows of a self-organising map; every category needs as many prompts as its map has neurons."""
    som_columns: int = Field(default=3, ge=1)
    """Columns of a map."""
    som_iterations: int = Field(default=10_000, ge=1)
    """Prompts shown to a map while it is trained."""
    som_learning_rate: float = Field(default=0.01, gt=0, le=1)
    """Learning rate of a map (none in batch training)."""
    som_sigma: float = Field(default=0.33, gt=0)
    """Width of a map's neighbourhood, in neurons."""
    som_winners: int = Field(default=1, ge=1)
    """Neurons of each map that give a direction, those with the most prompts."""
    som_read: Literal["neuron", "members"] = "neuron"
    """What a winner's direction is: its own weights, or the mean of the differences that it wins."""
    som_training: Literal["random", "batch"] = "random"
    """How a map is trained: on one prompt after another in random order, or on all at once until it rests."""

    weights: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0, 1.2)
    """Weights of the grid, rising: the share of each direction that is taken out."""
    curve_weights: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0, 1.2, 1.6, 2.0)
    """Weights at which arms are traced on test at their chosen layers, rising until the refusals are gone at two in a row."""
    pair_layers: int = Field(default=4, ge=0)
    """Pairs are made of this many layers, the best alone on the screen; 0 edits no pairs (the controls never do)."""
    paper_prompts: int = Field(default=10, ge=1)
    """Harmful prompts of the paper's own protocol, drawn evenly over categories: R counts refusals among them."""
    finalists: int = Field(default=3, ge=1)
    """Most cells an arm that are read in whole responses on validation after the one-token screen, best first, until one works."""
    audit_cells: int = Field(default=12, ge=0)
    """Cells that the screen spares from reading, read all the same to see whether it was right."""

    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of on-topic prompts in the baseline of the dose-response; empty leaves it out."""
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers of harmful prompts that directions are made from in the dose-response, those up to what there is; empty leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> "ContrastConfig":
        for name, allowed in (("baselines", BASELINES), ("variants", VARIANTS)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise unknown_name(name.removesuffix("s"), value, allowed)
        for name in ("baselines", "methods"):
            if not getattr(self, name):
                raise UserError(f"{name} must name at least one; leave the setting out for all.")
        _check_once(self)
        for name in ("weights", "curve_weights"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise UserError(f"{name} must hold at least one number, all above 0; got {list(getattr(self, name))}.")
        if any(not 0 <= share <= 1 for share in self.shares):
            raise UserError(f"shares must lie between 0 and 1; got {list(self.shares)}.")
        if any(size < 2 for size in self.sizes):
            raise UserError(f"sizes must be at least 2; got {list(self.sizes)}.")
        return self


def _check_once(config: ContrastConfig) -> None:
    for name in ("baselines", "methods", "variants", "weights", "shares", "sizes"):
        values = getattr(config, name)
        if len(set(values)) != len(values):
            raise UserError(f"{name} must name each value once; got {list(values)}.")


def make_contrast_config(settings: dict[str, Any]) -> ContrastConfig:
    """Return the checked settings; raises `UserError` naming the first wrong one, with the nearest valid name."""
    return checked(ContrastConfig, settings)
