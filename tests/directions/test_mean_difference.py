"""Difference of means against float64, on planted truth."""

import pytest
import torch

from resect import directions


def test_planted_direction_is_found_at_its_layer_only() -> None:
    generator = torch.Generator().manual_seed(0)
    harmless = torch.randn(200, 3, 32, generator=generator)
    harmful = torch.randn(150, 3, 32, generator=generator)
    planted = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=-1)
    harmful[:, 1] += 5 * planted
    found = directions.raw_direction(harmful, harmless).unit[:, 0]
    cosines = (found @ planted).abs()
    assert cosines[1] > 0.98
    assert max(cosines[0], cosines[2]) < 0.6


def test_large_offsets_do_not_eat_a_small_difference() -> None:
    rows = torch.full((1000, 1, 4), 1e4)
    shifted = rows.clone()
    shifted[:, :, 0] += 0.0625
    expected = (shifted.double().mean(0) - rows.double().mean(0)).float()
    assert torch.equal(directions.mean_difference(shifted, rows), expected)
    assert expected[0, 0] > 0.05


def test_nan_is_refused_by_layer() -> None:
    bad = torch.ones(3, 1, 4)
    bad[2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers \[2\]"):
        directions.Directions(bad, method="test")


def test_a_zero_vector_stays_zero_in_unit_form() -> None:
    assert torch.equal(directions.Directions(torch.zeros(1, 1, 4), method="test").unit, torch.zeros(1, 1, 4))
