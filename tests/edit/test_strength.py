"""Strength profiles."""

import pytest
import torch

from resect.edit import strength


def test_energy_is_the_squared_norm_with_peak_one() -> None:
    atom = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert strength.energy(atom).tolist() == pytest.approx([1 / 9, 4 / 9, 1.0])


def test_energy_needs_raw_norms() -> None:
    unit = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), dim=-1)
    assert strength.energy(unit).tolist() == [1.0, 1.0]


def test_window_keeps_both_ends() -> None:
    assert strength.window(strength.flat(5), first=1, last=3).tolist() == [0, 1, 1, 1, 0]
