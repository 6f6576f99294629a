"""The arms of the SRA study: which direction, and which strength at which layer. A new arm is one more entry of `ARMS`.

Every arm goes through the same choice of strength and layers (`selection.py`), so that arms differ in these two columns only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from resect import cleaning, directions
from resect.cleaning import KeepTerm
from resect.config import SRAConfig
from resect.edit import strength
from resect.edit.oblique import oblique_plan
from resect.edit.plan import EditPlan, WriterLike, make_plan
from resect.studies.materials import Materials

Terms = Callable[[Materials, float, SRAConfig], list[KeepTerm]]
Knob = Literal["none", "lams", "shrinkages"]
Rule = Literal["flat", "energy", "gamma_rule"]


@dataclass(frozen=True)
class Arm:
    """How an arm makes its direction and its strength profile.

    `terms` are the terms of the cleaning formula at a softness, which is one of the settings named by `knob`: validation chooses it
    along with the strength. `rules` are the strength rules it may choose among: `flat`, `energy`, or `gamma_rule` for the study's.
    """

    name: str
    label: str
    method: str
    terms: Terms
    knob: Knob = "none"
    rules: tuple[Rule, ...] = ("flat",)
    oblique: bool = False
    control: bool = False


@dataclass(frozen=True, eq=False)
class Recipe:
    """An arm's direction and strength profiles for one model, ready to be edited with.

    `vectors` is the direction that reads (and, unless `removed` differs, is removed); each profile has peak 1.
    """

    vectors: Float[Tensor, "layer d_model"]
    removed: Float[Tensor, "layer d_model"]
    profiles: Mapping[str, Float[Tensor, " layer"]]
    oblique: bool = False

    def strengths(self, choice: "Choice", *, gamma: float | None = None) -> Float[Tensor, " layer"]:
        """Return gamma per layer: the chosen profile inside the window, scaled so that its peak there is the chosen strength."""
        return choice.strengths(self.profiles[choice.rule], gamma)

    def plan(self, writers: Sequence[WriterLike], choice: "Choice", *, gamma: float | None = None) -> EditPlan:
        """Return the edit for a choice of source, window and strength (`gamma` overrides the choice's)."""
        strengths = self.strengths(choice, gamma=gamma)
        read, removed = (choice.sourced(v) for v in (self.vectors, self.removed))
        if self.oblique:
            return oblique_plan(writers, removed, read, strengths)
        return make_plan(writers, read[:, None, :], strengths)


@dataclass(frozen=True)
class Choice:
    """What selection decides: `source` None lets each layer use its own direction, a layer index uses that one everywhere.

    `softness` is the lambda or shrinkage of the cleaning (0 for arms that have none), `rule` the strength rule.
    """

    source: int | None
    first: int
    last: int
    gamma: float
    softness: float = 0.0
    rule: str = "flat"

    def strengths(self, profile: Float[Tensor, " layer"], gamma: float | None = None) -> Float[Tensor, " layer"]:
        """Return gamma per layer: the profile inside the window, scaled so that its peak there is gamma."""
        inside = strength.window(profile, first=self.first, last=self.last)
        return inside / inside.max().clamp_min(1e-12) * (self.gamma if gamma is None else gamma)

    def sourced(self, vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
        """Return the direction for each layer."""
        return vectors if self.source is None else vectors[self.source].expand_as(vectors)


def softnesses(arm: Arm, config: SRAConfig) -> tuple[float, ...]:
    """Return the values of the arm's knob that validation chooses among."""
    return (0.0,) if arm.knob == "none" else tuple(dict.fromkeys(getattr(config, arm.knob)))


def recipe(arm: Arm, materials: Materials, config: SRAConfig, *, softness: float, gamma_atom: str) -> Recipe:
    """Return the arm's direction and profile at a softness of the cleaning."""
    raw = materials.raw
    cleaned = cleaning.clean(raw[:, None, :], arm.terms(materials, softness, config))[:, 0]
    rules = dict.fromkeys(config.gamma_rule if rule == "gamma_rule" else rule for rule in arm.rules)
    profiles = {rule: strength.energy(materials.atom(gamma_atom)) if rule == "energy" else strength.flat(len(raw)) for rule in rules}
    return Recipe(vectors=cleaned, removed=raw if arm.oblique else cleaned, profiles=profiles, oblique=arm.oblique)


def _raw(_materials: Materials, _softness: float, _config: SRAConfig) -> list[KeepTerm]:
    return []


def _projected(materials: Materials, _softness: float, _config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.harmless_mean_term(directions.mean_rows(materials.harmless))]


def _atoms(materials: Materials, lam: float, config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.atom_term(materials.kept_atoms, lam=lam, scaling=config.atom_scaling)]


def _whitened(materials: Materials, shrinkage: float, _config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.covariance_term(materials.harmless, shrinkage=shrinkage)]


def _combined(materials: Materials, shrinkage: float, _config: SRAConfig) -> list[KeepTerm]:
    pooled = cleaning.pooled_covariance_term([materials.harmless, materials.harmful], shrinkage=shrinkage)
    return [pooled, cleaning.harmless_mean_term(directions.mean_rows(materials.harmless))]


def _random(materials: Materials, lam: float, config: SRAConfig) -> list[KeepTerm]:
    control = cleaning.random_atoms(materials.kept_atoms, seed=config.seed)
    return [cleaning.atom_term(control, lam=lam, scaling=config.atom_scaling)]


_SRA = "raw direction minus its ridge fit on shield and confound atoms"
_ALL = (
    Arm("standard", "standard", "raw difference of means, the same strength at every edited layer", _raw),
    Arm("projected", "projected", "raw direction made orthogonal to the harmless mean", _projected),
    Arm("sra", "SRA", f"{_SRA}, strength by the gamma rule", _atoms, knob="lams", rules=("gamma_rule",)),
    Arm("whitened", "whitened", "raw direction through the inverse shrunk benign covariance (shrinkage LDA)", _whitened, knob="shrinkages"),
    Arm(
        "combined",
        "combined",
        "cleaned of the harmless mean and of what varies within either side (pooled covariance), strength rule chosen too",
        _combined,
        knob="shrinkages",
        rules=("flat", "energy"),
    ),
    Arm("oblique", "oblique", "reads with SRA's direction, removes along the raw one", _atoms, knob="lams", oblique=True),
    Arm(
        "standard_sra_strength",
        "raw + SRA strength",
        "raw direction with SRA's per-layer strength",
        _raw,
        rules=("gamma_rule",),
        control=True,
    ),
    Arm("sra_flat", "SRA, flat strength", f"{_SRA}, the same strength at every edited layer", _atoms, knob="lams", control=True),
    Arm(
        "random_atoms",
        "random atoms",
        "SRA with as many random directions as atoms",
        _random,
        knob="lams",
        rules=("gamma_rule",),
        control=True,
    ),
)
ARMS = {arm.name: arm for arm in _ALL}


def needs_energy(config: SRAConfig) -> bool:
    """Whether an arm of the settings takes its strength from the energy of an atom."""
    rules = {rule for name in config.arms for rule in ARMS[name].rules}
    return "energy" in rules or ("gamma_rule" in rules and config.gamma_rule == "energy")


def depth_to_layer(depth: float, layers: int) -> int:
    """Return the layer at a depth: 0 is the first, 1 the last."""
    return min(layers - 1, max(0, round(depth * (layers - 1))))


def places(config: SRAConfig, layers: int) -> tuple[Choice, ...]:
    """Return every source x window, at strength 1; what coincides in a shallow model is listed once."""
    single = tuple(depth_to_layer(depth, layers) for depth in config.source_layers)
    sources: dict[str, tuple[int | None, ...]] = {"any": (None, *single), "per_layer": (None,), "single": single}
    windows = [(depth_to_layer(a, layers), depth_to_layer(b, layers)) for a, b in config.windows]
    grid = product(dict.fromkeys(sources[config.source]), dict.fromkeys(windows))
    return tuple(Choice(source, first, last, 1.0) for source, (first, last) in grid)
