import json
import math
from dataclasses import replace

import pytest
import torch

from resect.directions import Directions
from resect.evaluation.statistics import holm
from resect.studies.contrast_arms import Recipe
from resect.studies.contrast_geometry import capture_of_pairs, error_bars, geometry, topic_part


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recipe(*vectors):
    return Recipe(Directions(torch.stack(vectors)[None], "planted"), joint=True, scales=None)


def test_capture_of_planted_pairs():
    a, b, c = torch.eye(8)[:3]
    pairs = torch.stack([a, (a + b) / 2**0.5, c])[:, None, :] * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    found = capture_of_pairs({"a": recipe(a), "ab": recipe(a, 2 * b), "doubled": recipe(a, 3 * a)}, pairs)
    half = 2**-0.5
    assert found["a"]["best"] == found["a"]["span"] == [pytest.approx((1 + half + 0) / 3)]
    assert found["a"]["span_squared"] == [pytest.approx((1 + 0.5 + 0) / 3)]
    assert found["ab"]["best"] == [pytest.approx((1 + half + 0) / 3)]
    assert found["ab"]["span"] == [pytest.approx(2 / 3)]
    assert found["doubled"] == {name: [pytest.approx(found["a"][name][0])] for name in found["a"]}


def test_capture_by_anything_is_that_of_chance():
    pairs, random = draw(200, 1, 64), recipe(*draw(4, 64, seed=1))
    assert capture_of_pairs({"random": random}, pairs)["random"]["span_squared"][0] == pytest.approx(4 / 64, rel=0.2)


def test_the_topic_part_of_a_topic_is_all_and_of_what_has_none_nothing(desk):
    materials = desk.materials
    inside = materials.topic_means[:, 0]
    torch.testing.assert_close(topic_part(inside, materials), torch.ones(6, dtype=torch.float64), atol=1e-4, rtol=0)
    basis = torch.linalg.qr(materials.topic_means.mT.double()).Q
    outside = draw(6, 128).double()
    outside = outside - (basis @ (basis.mT @ outside[:, :, None]))[:, :, 0]
    assert topic_part(outside.float(), materials).max() < 1e-6


def test_the_geometry_has_every_baseline_and_layer(desk):
    names = ("unmatched", "matched", "paired")
    found = geometry(desk.materials, names, angle=10.0, seed=0)
    assert set(found["norms"]) == set(found["errors"]) == set(names)
    assert set(found["cosines"]) == {"matched", "paired"}
    assert all(len(row) == 6 for part in ("norms", "cosines", "topic_part") for row in found[part].values())
    for bars in found["errors"].values():
        assert all(len(bars[name]) == 6 for name in ("cone", "signal_to_noise", "p_value", "p_holm", "prompts_needed"))
        for name in ("signal", "angle", "split_half", "held_out"):
            ends = [torch.tensor(bars[name][end]) for end in ("low", "value", "high")]
            assert (ends[0] <= ends[1]).all()
            assert (ends[1] <= ends[2]).all()
    assert found["topic_part"]["unmatched"][0] > found["topic_part"]["matched"][0]
    assert set(found["rows"].values()) == {desk.materials.matched_count}
    assert found["no_errors"] == {}
    alone = geometry(desk.materials, ("matched",), angle=10.0, seed=0)
    assert alone["cosines"] == {}
    assert alone["errors"] == {"matched": found["errors"]["matched"]}
    json.dumps(found, allow_nan=False)


def test_error_bars_tell_refusal_from_labels_without_meaning(desk):
    """Where safety tuning wrote, every measure sees the direction; the same rows with their sides shuffled within pairs have none."""
    materials = desk.materials
    true = error_bars(materials, materials.baseline("paired"), angle=10.0, seed=0)
    turned = torch.rand(len(materials.prompts), generator=torch.Generator().manual_seed(1)) < 0.5
    partner = materials.weights["paired"].argmax(1)
    harmful, benign = materials.harmful.clone(), materials.benign.clone()
    harmful[turned], benign[partner[turned]] = materials.benign[partner[turned]], materials.harmful[turned]
    mixed = replace(materials, harmful=harmful, benign=benign)
    null = error_bars(mixed, mixed.baseline("paired"), angle=10.0, seed=0)
    layer = 4
    assert true["p_holm"][layer] < 0.01 < null["p_value"][layer]
    assert true["split_half"]["value"][layer] > 0.9 > 0.5 > null["split_half"]["value"][layer]
    assert true["cone"][layer] < 20 < null["cone"][layer]
    assert true["held_out"]["low"][layer] > 0
    assert true["prompts_needed"][layer] < (null["prompts_needed"][layer] or math.inf)
    p = true["p_value"]
    assert true["p_holm"] == list(holm(p))


def test_what_has_no_error_says_why_and_nothing_held_out_is_null(desk):
    materials = desk.materials
    lone = torch.zeros_like(materials.weights["matched"])
    lone[:, 0] = 1
    planted = replace(materials, weights={**materials.weights, "matched": lone}, held_out=materials.held_out[:0])
    found = geometry(planted, ("unmatched", "matched"), angle=10.0, seed=0)
    assert set(found["errors"]) == {"unmatched"}
    assert found["errors"]["unmatched"]["held_out"] is None
    assert "One harmless prompt is all of its kind" in found["no_errors"]["matched"]
    assert capture_of_pairs({"a": recipe(torch.eye(8)[0])}, planted.held_out) == {}
