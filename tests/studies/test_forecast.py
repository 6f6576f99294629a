"""The forecast against what edits of the shipped organism do, and on planted activations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from resect import cleaning
from resect.evaluation.statistics import spearman
from resect.studies import selection
from resect.studies.arms import ARMS, softnesses
from resect.studies.forecast import activation_drift, forecast, predict
from resect.studies.materials import Materials


def planted(style: float) -> Materials:
    """Refusal along axis 0; `style` of an atom along axis 1 in the direction, on which benign prompts vary a lot."""
    generator = torch.Generator().manual_seed(0)
    rows = 0.1 * torch.randn(200, 3, 16, generator=generator)
    rows[..., 1] += 2 * torch.randn(200, 3, generator=generator)
    harmful, harmless = rows[:100].clone(), rows[100:]
    harmful[..., 1] += harmless[..., 1].mean(0) - harmful[..., 1].mean(0) + style
    harmful[..., 0] += 2.0
    atoms = torch.zeros(3, 1, 16)
    atoms[:, 0, 1] = 1.0
    return Materials(harmful, harmless, atoms, names=("style",), kept=(True,))


def places(bench, arm):
    recipes = {softness: bench.recipe(arm, softness) for softness in softnesses(ARMS[arm], bench.config)}
    return recipes, selection.grid(bench.lab, recipes)


@pytest.fixture(scope="module")
def tried(bench):
    """Every place of three arms with its plan at unit strength and what is predicted of it."""
    rows = []
    for arm in ("standard", "projected", "sra"):
        recipes, choices = places(bench, arm)
        rows += [(recipes, choice, recipes[choice.softness].plan(bench.lab.writers, choice)) for choice in choices]
    return list(zip(rows, predict(bench.lab, bench.behaviour, [plan for *_, plan in rows]), strict=True))


def test_small_edits_do_what_is_predicted(bench, tried):
    """KL at a small strength s is s^2 times the predicted curvature, up to third order."""
    for (recipes, choice, _), predicted in tried:
        if predicted.kl is None:
            continue
        small = 0.05
        measured = selection.screen(bench.lab, recipes, [replace(choice, gamma=small)], bench.behaviour)[0].kl
        assert measured == pytest.approx(predicted.kl * (small / predicted.strength) ** 2, rel=0.6)


def test_places_are_ranked_as_whole_edits_rank_them(bench, tried):
    predicted, measured = [], []
    for (recipes, choice, _), one in tried:
        working = selection.screen(bench.lab, recipes, [replace(choice, gamma=g) for g in (1.0, 1.5, 2.0, 3.0)], bench.behaviour)
        kl = next((c.kl for c in working if c.refusal <= 0.1), None)
        if kl is not None and one.kl is not None:
            predicted.append(np.log(one.kl))
            measured.append(np.log(kl))
    assert len(predicted) >= 5
    assert spearman(predicted, measured).value > 0.5


def test_the_verdict_follows_the_two_predictions(bench):
    def made(raw_arm, clean_arm):
        plans = []
        for arm in (raw_arm, clean_arm):
            recipes, choices = places(bench, arm)
            plans.append([recipes[c.softness].plan(bench.lab.writers, c) for c in choices])
        return forecast(bench.lab, bench.behaviour, plans[0], plans[1], {})

    there, back = made("standard", "sra"), made("sra", "standard")
    assert there["value"] * back["value"] == pytest.approx(1, rel=1e-6)
    assert there["pays"] == (there["value"] > 1)
    assert back["pays"] == (back["value"] > 1)
    assert f"{there['value']:.2f} times" in there["sentence"]


def test_a_direction_that_leads_nowhere_has_no_prediction(bench):
    recipes, choices = places(bench, "standard")
    backwards = [recipes[c.softness].plan(bench.lab.writers, c, gamma=-1.0) for c in choices]
    towards = [recipes[c.softness].plan(bench.lab.writers, c) for c in choices]
    there, back = predict(bench.lab, bench.behaviour, towards), predict(bench.lab, bench.behaviour, backwards)
    assert any(p.kl is not None for p in there)
    assert all((a.kl is None) != (b.kl is None) for a, b in zip(there, back, strict=True))
    found = forecast(bench.lab, bench.behaviour, [b for b, p in zip(backwards, back, strict=True) if p.kl is None], towards, {})
    assert found["pays"]
    assert found["value"] is None
    assert "the raw direction does not lower" in found["sentence"]


def test_a_network_without_gradients_gives_no_forecast(bench, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("derivative for aten::thing is not implemented\nmore")

    monkeypatch.setattr("resect.studies.forecast.slopes", broken)
    found = forecast(bench.lab, bench.behaviour, [], [], {"r_squared": 0.5})
    assert found["pays"] is None
    assert found["sentence"] == "No forecast: the network cannot be differentiated (derivative for aten::thing is not implemented)."
    assert found["others"] == {"r_squared": 0.5}


def test_activation_drift_is_the_energy_taken_out_over_the_effect() -> None:
    materials = planted(style=1.0)
    raw = materials.raw
    unit = torch.nn.functional.normalize(raw.double(), dim=-1)
    energy = torch.einsum("nld,ld->nl", materials.harmless.double(), unit).square().mean(0).sum()
    assert activation_drift(raw, raw, materials.harmless) == pytest.approx(float(energy), rel=1e-5)
    assert activation_drift(7 * raw, raw, materials.harmless) == pytest.approx(float(energy), rel=1e-5)
    clean = cleaning.clean(raw[:, None], [cleaning.atom_term(materials.kept_atoms, lam=0.1)])[:, 0]
    assert activation_drift(clean, raw, materials.harmless) < activation_drift(raw, raw, materials.harmless)
