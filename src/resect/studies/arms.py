"""The arms of the SRA study: which direction, and which strength at which layer. A new arm is one more entry of `ARMS`.

Every arm goes through the same choice of strength and layers (`selection.py`), so that arms differ in these two columns only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from jaxtyping import Float
from torch import Tensor

from resect import cleaning
from resect.cleaning import KeepTerm
from resect.config import SRAConfig
from resect.edit import strength
from resect.edit.oblique import oblique_plan
from resect.edit.plan import EditPlan, WriterLike, make_plan
from resect.studies.materials import Materials

Terms = Callable[[Materials, SRAConfig], list[KeepTerm]]


@dataclass(frozen=True)
class Arm:
    """How an arm makes its direction (`terms` of the cleaning formula) and its strength profile (`energy` or `flat`)."""

    name: str
    label: str
    method: str
    terms: Terms
    rule: str = "flat"
    oblique: bool = False
    control: bool = False


@dataclass(frozen=True, eq=False)
class Recipe:
    """An arm's direction and profile for one model, ready to be edited with.

    `vectors` is the direction that reads (and, unless `removed` differs, is removed); `profile` has peak 1.
    """

    vectors: Float[Tensor, "layer d_model"]
    removed: Float[Tensor, "layer d_model"]
    profile: Float[Tensor, " layer"]
    oblique: bool = False

    def plan(self, writers: Sequence[WriterLike], choice: "Choice", *, gamma: float | None = None) -> EditPlan:
        """Return the edit for a choice of source, window and strength (`gamma` overrides the choice's)."""
        strengths = choice.strengths(self.profile, gamma)
        read, removed = (choice.sourced(v) for v in (self.vectors, self.removed))
        if self.oblique:
            return oblique_plan(writers, removed, read, strengths)
        return make_plan(writers, read[:, None, :], strengths)


@dataclass(frozen=True)
class Choice:
    """What selection decides: `source` None lets each layer use its own direction, a layer index uses that one everywhere."""

    source: int | None
    first: int
    last: int
    gamma: float

    def strengths(self, profile: Float[Tensor, " layer"], gamma: float | None = None) -> Float[Tensor, " layer"]:
        """Return gamma per layer: the profile inside the window, scaled so that its peak there is gamma."""
        inside = strength.window(profile, first=self.first, last=self.last)
        return inside / inside.max().clamp_min(1e-12) * (self.gamma if gamma is None else gamma)

    def sourced(self, vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
        """Return the direction for each layer."""
        return vectors if self.source is None else vectors[self.source].expand_as(vectors)


def recipe(arm: Arm, materials: Materials, config: SRAConfig, *, gamma_atom: str) -> Recipe:
    """Return the arm's direction and profile from the materials."""
    raw = materials.raw
    cleaned = cleaning.clean(raw[:, None, :], arm.terms(materials, config))[:, 0]
    rule = config.gamma_rule if arm.rule == "sra" else arm.rule
    profile = strength.energy(materials.atom(gamma_atom)) if rule == "energy" else strength.flat(len(raw))
    return Recipe(vectors=cleaned, removed=raw if arm.oblique else cleaned, profile=profile, oblique=arm.oblique)


def _raw(_materials: Materials, _config: SRAConfig) -> list[KeepTerm]:
    return []


def _projected(materials: Materials, _config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.harmless_mean_term(materials.harmless.double().mean(0).float())]


def _sra(materials: Materials, config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.atom_term(materials.kept_atoms, lam=config.lam, scaling=config.atom_scaling)]


def _whitened(materials: Materials, config: SRAConfig) -> list[KeepTerm]:
    return [cleaning.covariance_term(materials.harmless, shrinkage=config.shrinkage)]


def _combined(materials: Materials, config: SRAConfig) -> list[KeepTerm]:
    return [*_sra(materials, config), cleaning.second_moment_term(materials.updates, shrinkage=config.shrinkage)]


def _random(materials: Materials, config: SRAConfig) -> list[KeepTerm]:
    control = cleaning.random_atoms(materials.kept_atoms, seed=config.seed)
    return [cleaning.atom_term(control, lam=config.lam, scaling=config.atom_scaling)]


_ALL = (
    Arm("standard", "standard", "raw difference of means, the same strength at every edited layer", _raw),
    Arm("projected", "projected", "raw direction made orthogonal to the harmless mean", _projected),
    Arm("sra", "SRA", "raw direction minus its ridge fit on shield and confound atoms, strength by the gamma rule", _sra, rule="sra"),
    Arm("whitened", "whitened", "raw direction through the inverse shrunk benign covariance (shrinkage LDA)", _whitened),
    Arm("combined", "combined", "cleaned of atoms and of the second moment of benign block updates at once", _combined),
    Arm("oblique", "oblique", "reads with the combined direction, removes along the raw one", _combined, oblique=True),
    Arm("standard_sra_strength", "raw + SRA strength", "raw direction with SRA's per-layer strength", _raw, rule="energy", control=True),
    Arm("sra_flat", "SRA, flat strength", "SRA's direction with the same strength at every edited layer", _sra, control=True),
    Arm("random_atoms", "random atoms", "SRA with as many random directions in place of the atoms", _random, rule="sra", control=True),
)
ARMS = {arm.name: arm for arm in _ALL}


def depth_to_layer(depth: float, layers: int) -> int:
    """Return the layer at a depth: 0 is the first, 1 the last."""
    return min(layers - 1, max(0, round(depth * (layers - 1))))


def choice_grid(config: SRAConfig, layers: int) -> tuple[Choice, ...]:
    """Return every choice: source x window x strength; what coincides in a shallow model is listed once."""
    sources: list[int | None] = [None, *(depth_to_layer(depth, layers) for depth in config.source_layers)]
    windows = [(depth_to_layer(a, layers), depth_to_layer(b, layers)) for a, b in config.windows]
    grid = product(dict.fromkeys(sources), dict.fromkeys(windows), dict.fromkeys(config.strengths))
    return tuple(Choice(source, first, last, gamma) for source, (first, last), gamma in grid)
