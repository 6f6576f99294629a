"""Passes with hard negatives."""

from dataclasses import replace

import pytest

from resect.studies import curves, passes


@pytest.fixture(scope="module")
def weak(bench, picked):
    """An edit too weak to remove the refusals: there is something left to fit."""
    recipe, choice = bench.chosen("sra", picked["sra"])
    return recipe, replace(choice, gamma=0.25)


def run(bench, recipe, choice):
    return passes.run_passes(bench.lab, recipe, choice, bench.materials, bench.behaviour, bench.reference)


def test_the_first_pass_is_the_edit_itself(bench, weak):
    recipe, choice = weak
    point = curves.measure(bench.lab, recipe.plan(bench.lab.writers, choice), bench.behaviour, bench.reference, strength=1.0)
    wanted = curves.summary([point], seed=0)[0]
    first = run(bench, recipe, choice)[0]
    for name in ("refusal_rate", "kl_first_token", "recovery"):
        assert first[name] == wanted[name]


def test_passes_go_on_while_prompts_refuse_and_stop_at_the_limit(bench, weak):
    entries = run(bench, *weak)
    assert [e["pass"] for e in entries] == [1, 2]
    assert entries[0]["stopped"] is None
    assert entries[0]["hard_negatives"] >= passes.FEWEST_HARD
    assert entries[1]["stopped"] == "pass 2 of 2 was the last allowed"
    assert entries[1]["r_squared"] != entries[0]["r_squared"]
    for entry in entries:
        assert set(entry["coefficients"]) == set(bench.materials.names)
        assert 0 <= entry["r_squared"] <= 1


def test_passes_stop_when_too_few_prompts_refuse(bench, weak, monkeypatch):
    monkeypatch.setattr(passes, "FEWEST_HARD", 33)
    entries = run(bench, *weak)
    assert len(entries) == 1
    assert entries[0]["stopped"] == f"only {entries[0]['hard_negatives']} extraction prompts still refuse"
