"""Arms on planted materials: what each keeps, where each is strong."""

import pytest
import torch

from resect.config import ARMS as NAMES
from resect.config import make_config
from resect.studies import arms
from resect.studies.arms import ARMS, Choice
from resect.studies.materials import Materials

LAYERS, WIDTH = 6, 24


@pytest.fixture(scope="module")
def materials() -> Materials:
    """Refusal along axis 0, a style along axis 1 that harmful prompts share, benign spread along axis 2, mean along axis 3."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(160, LAYERS, WIDTH, generator=generator)
    rows = noise.clone()
    rows[..., 2] += 3 * torch.randn(160, LAYERS, generator=generator)
    rows[..., 3] += 2.0
    harmful, harmless = rows[:80].clone(), rows[80:]
    harmful[..., 0] += 2.0
    harmful[..., 1] += 2.0
    harmful[..., 3] += 1.0
    atoms = torch.zeros(LAYERS, 2, WIDTH)
    atoms[:, 0, 1] = 1.0
    atoms[:, 1, 0] = torch.arange(1.0, LAYERS + 1)
    return Materials(harmful, harmless, atoms, names=("style", "deception"), kept=(True, False))


def made(name: str, materials: Materials, *, softness: float = 0.0, **settings):
    config = make_config(settings)
    return arms.recipe(ARMS[name], materials, config, softness=softness, gamma_atom="deception")


def share(vectors: torch.Tensor, axis: int) -> float:
    return float((vectors[..., axis].square() / vectors.square().sum(-1)).mean())


def test_every_named_arm_has_a_recipe(materials) -> None:
    assert tuple(ARMS) == NAMES
    for name in ARMS:
        assert torch.isfinite(made(name, materials, softness=1.0).vectors).all()


def test_each_cleaning_takes_out_what_it_is_for(materials) -> None:
    raw = made("standard", materials).vectors
    assert share(raw, 1) > 0.25
    assert share(made("sra", materials, softness=0.01).vectors, 1) < 1e-3
    assert share(raw, 3) > 0.05
    assert share(made("projected", materials).vectors, 3) < 1e-2
    spread = [share(made(name, materials, softness=1.0).vectors, 2) for name in ("standard", "whitened", "combined")]
    assert spread[1] < spread[0]
    assert spread[2] < spread[0]
    assert share(made("combined", materials, softness=1.0).vectors, 3) < 1e-2


def test_random_atoms_leave_the_style_in(materials) -> None:
    assert share(made("random_atoms", materials, softness=0.01).vectors, 1) > 0.2


def test_oblique_reads_clean_and_removes_the_raw_direction(materials) -> None:
    recipe = made("oblique", materials, softness=0.01)
    assert torch.equal(recipe.removed, materials.raw)
    assert share(recipe.vectors, 1) < 1e-3


def test_the_energy_rule_follows_the_raw_norm_and_the_window_renormalises_its_peak(materials) -> None:
    recipe = made("sra", materials, softness=1.0)
    whole = recipe.strengths(Choice(None, 0, 5, 2.0, 1.0, "energy"))
    assert whole.tolist() == pytest.approx([2 * (k / 6) ** 2 for k in range(1, 7)])
    early = recipe.strengths(Choice(None, 0, 2, 2.0, 1.0, "energy"))
    assert early.tolist() == pytest.approx([2 * (k / 3) ** 2 for k in range(1, 4)] + [0, 0, 0])


def test_the_flat_gamma_rule_makes_sra_and_sra_flat_one(materials) -> None:
    flat = made("sra", materials, softness=1.0, gamma_rule="flat")
    assert list(flat.profiles) == ["flat"]
    assert torch.equal(flat.vectors, made("sra_flat", materials, softness=1.0).vectors)


def test_combined_may_choose_its_rule(materials) -> None:
    assert list(made("combined", materials, softness=1.0).profiles) == ["flat", "energy"]


def test_one_source_is_used_everywhere(materials) -> None:
    vectors = materials.raw
    assert torch.equal(Choice(4, 0, 5, 1.0).sourced(vectors), vectors[4].expand_as(vectors))
    assert torch.equal(Choice(None, 0, 5, 1.0).sourced(vectors), vectors)


def test_places_cover_the_settings_once() -> None:
    config = make_config({"source_layers": [0.5, 0.51], "windows": [[0.0, 1.0], [0.01, 1.0]]})
    assert [(p.source, p.first, p.last) for p in arms.places(config, 6)] == [(None, 0, 5), (2, 0, 5), (3, 0, 5)]
    only = make_config({"source": "per_layer"})
    assert {p.source for p in arms.places(only, 6)} == {None}


def test_energy_is_needed_only_where_an_arm_uses_it() -> None:
    assert arms.needs_energy(make_config({}))
    assert not arms.needs_energy(make_config({"arms": ["standard", "sra"], "gamma_rule": "flat"}))
    assert arms.needs_energy(make_config({"arms": ["combined"], "gamma_rule": "flat"}))
