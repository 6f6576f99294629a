"""Every knob of the SRA study."""

from typing import Any, Literal

from pydantic import Field, model_validator

from resect.config.base import StudyConfig
from resect.config.files import checked
from resect.errors import UserError, unknown_name

ARMS = (
    "standard",
    "projected",
    "sra",
    "whitened",
    "combined",
    "oblique",
    "standard_sra_strength",
    "sra_flat",
    "random_atoms",
)
"""Every arm of the SRA study besides `base`, in the order of the tables."""


class SRAConfig(StudyConfig):
    """The settings of `resect sra`. No value of the paper is assumed where the paper gives none: those are options here."""

    arms: tuple[str, ...] = ARMS
    """Arms to run besides `base`, which always runs."""
    capability_prompts: int = Field(default=128, ge=1)
    """Most question-answer pairs per capability file."""

    lams: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Ridge lambdas of the cleaning on atoms among which validation chooses (not published; 0 projects the atoms out exactly)."""
    lam_sweep: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    """Lambdas at which SRA is reported at otherwise fixed settings; empty switches the sweep off."""
    atom_scaling: Literal["unit", "raw"] = "unit"
    """Whether atoms enter the ridge at norm 1 or with their raw norms (not published)."""
    shrinkages: tuple[float, ...] = (1.0, 3.0, 10.0)
    """Shrinkages of the benign or pooled covariance, in mean eigenvalues, among which validation chooses."""
    gamma_rule: Literal["energy", "flat"] = "energy"
    """Per-layer strength of the `sra` arm: proportional to the squared norm of one atom (the paper's rule) or the same everywhere."""
    gamma_atom: str | None = None
    """The atom whose energy sets the strength under the `energy` rule; unset takes `deception`, or else the first target."""

    strengths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    """Peak strengths gamma tried on validation, rising until the refusals are gone; 1 removes the component, 2 reflects it."""
    curve_strengths: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
    """Strengths of the KL-against-refusal curves on test, rising until the refusals are gone at two in a row."""
    windows: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.0, 0.75), (0.25, 1.0))
    """Edited layers as fractions of depth, tried on validation."""
    source: Literal["any", "per_layer", "single"] = "any"
    """Whether each edited layer uses its own direction (the paper's setting), one layer's is used everywhere, or validation decides."""
    source_layers: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8)
    """Depths whose direction is tried on all edited layers when one layer's is."""
    finalists: int = Field(default=24, ge=1)
    """Most candidates an arm that are read in whole responses after the one-token screen, best first, until one works."""
    drop_hopeless: bool = True
    """Whether candidates that refuse too much on 16 or 32 validation prompts are dropped from the screen."""
    drop_error: float = Field(default=0.01, gt=0, lt=1)
    """Probability, at most, of dropping any candidate of an arm that would have worked on all validation prompts."""

    passes: int = Field(default=3, ge=1)
    """Most passes of fit, edit, collect what still refuses, refit; 1 is a single fit."""

    ceilings: bool = True
    """Whether to measure how much of a twin any edit could restore (organisms only)."""

    text_context: int = Field(default=512, ge=2)
    """Window of plain-text perplexity, in tokens."""
    text_stride: int = Field(default=256, ge=1)
    """Stride of that window: how many new tokens are scored each step."""
    keep_text: bool = False
    """Keep prompts and responses in samples.jsonl; otherwise only hashes and verdicts are stored."""

    @model_validator(mode="after")
    def _check(self) -> "SRAConfig":
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown_name("arm", arm, ARMS)
        if len(set(self.arms)) != len(self.arms) or not self.arms:
            raise UserError(f"arms must name at least one arm, each once; got {list(self.arms)}.")
        _check_numbers(self)
        if any(not 0 <= a < b <= 1 for a, b in self.windows) or not self.windows:
            raise UserError(f"windows must be pairs of depths with 0 <= first < last <= 1; got {self.windows}.")
        if any(not 0 <= s <= 1 for s in self.source_layers) or (self.source == "single" and not self.source_layers):
            raise UserError(f"source_layers are depths between 0 and 1, at least one if source is single; got {self.source_layers}.")
        if self.text_stride >= self.text_context:
            raise UserError(f"text_stride {self.text_stride} must be below text_context {self.text_context}.")
        return self


def _check_numbers(config: SRAConfig) -> None:
    for name in ("strengths", "curve_strengths", "shrinkages"):
        if not getattr(config, name) or min(getattr(config, name)) <= 0:
            raise UserError(f"{name} must hold at least one number, all above 0; got {list(getattr(config, name))}.")
    if not config.lams or min((*config.lams, *config.lam_sweep)) < 0:
        raise UserError(f"lams must hold at least one number, and lams and lam_sweep none below 0; got {config.lams}, {config.lam_sweep}.")


def make_config(settings: dict[str, Any]) -> SRAConfig:
    """Return the checked settings; raises `UserError` naming the first wrong one, with the nearest valid name."""
    return checked(SRAConfig, settings)
