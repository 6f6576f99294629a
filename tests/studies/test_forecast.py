"""The forecast on planted truth: it sees what cleaning would save, and nothing where there is nothing to save."""

import pytest
import torch

from resect import cleaning
from resect.studies.forecast import THRESHOLD, forecast, predicted_drift
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
    return Materials(harmful, harmless, atoms, harmless[:50], names=("style",), kept=(True,))


def cleaned(materials: Materials) -> torch.Tensor:
    return cleaning.clean(materials.raw[:, None], [cleaning.atom_term(materials.kept_atoms, lam=0.1)])[:, 0]


def test_a_mixed_direction_is_forecast_to_pay_and_a_clean_one_not() -> None:
    mixed, clean = planted(style=1.0), planted(style=0.0)
    assert forecast(mixed, cleaned(mixed), lam=0.1)["pays"]
    made = forecast(clean, cleaned(clean), lam=0.1)
    assert not made["pays"]
    assert made["value"] < THRESHOLD
    assert made["sentence"].startswith("Cleaning is expected not to pay here")
    assert made["lambda"] == 0.1


def test_predicted_drift_is_the_energy_taken_out_over_the_effect() -> None:
    materials = planted(style=1.0)
    raw = materials.raw
    unit = torch.nn.functional.normalize(raw.double(), dim=-1)
    energy = torch.einsum("nld,ld->nl", materials.harmless.double(), unit).square().mean(0).sum()
    assert predicted_drift(raw, raw, materials.harmless) == pytest.approx(float(energy), rel=1e-5)
    assert predicted_drift(7 * raw, raw, materials.harmless) == pytest.approx(float(energy), rel=1e-5)
    half = raw / raw.norm(dim=-1, keepdim=True) + torch.nn.functional.normalize(torch.eye(16)[5].expand(3, 16), dim=-1)
    moved = (
        torch.einsum("nld,ld->nl", materials.harmless.double(), torch.nn.functional.normalize(half.double(), dim=-1)).square().mean(0).sum()
    )
    cosine = torch.nn.functional.cosine_similarity(half.double(), raw.double(), dim=-1).square().mean()
    assert predicted_drift(half, raw, materials.harmless) == pytest.approx(float(moved / cosine**2), rel=1e-4)
