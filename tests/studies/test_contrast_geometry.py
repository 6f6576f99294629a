import pytest
import torch

from resect.directions import Directions
from resect.studies.contrast_arms import Recipe
from resect.studies.contrast_geometry import capture_of_pairs, geometry, topic_part


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
    found = geometry(desk.materials, names, seed=0)
    assert set(found["norms"]) == set(names)
    assert set(found["cosines"]) == {"matched", "paired"}
    assert all(len(row) == 6 for part in ("norms", "cosines", "topic_part", "signal_to_noise", "cone") for row in found[part].values())
    assert found["topic_part"]["unmatched"][0] > found["topic_part"]["matched"][0]
    alone = geometry(desk.materials, ("matched",), seed=0)
    assert alone["cosines"] == {}
