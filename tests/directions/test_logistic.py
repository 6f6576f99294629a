"""The ridge probe against Newton's method, and against what it must find."""

import pytest
import torch

from resect.directions import Baseline, baselines
from resect.directions.logistic import logistic
from resect.errors import UserError


def newton(x, truth, mass, ridge):
    """Return the probe by Newton's method on the whole space."""
    centred = x - mass @ x
    scale = (mass @ centred.square().sum(1)).sqrt()
    z = torch.cat([centred / scale, torch.ones(len(x), 1).double()], dim=1)
    penalty = ridge * torch.ones(z.shape[1]).double()
    penalty[-1] = 0
    w = torch.zeros(z.shape[1]).double()
    for _ in range(50):
        p = torch.sigmoid(z @ w)
        gradient = z.T @ (mass * (p - truth)) + penalty * w
        hessian = z.T @ ((mass * p * (1 - p))[:, None] * z) + torch.diag(penalty)
        w = w - torch.linalg.solve(hessian, gradient)
    return w[:-1] / scale


@pytest.mark.parametrize(("prompts", "width"), [(40, 6), (10, 30)])
def test_it_is_the_minimum(prompts, width):
    generator = torch.Generator().manual_seed(0)
    harmful, rows = torch.randn(prompts, 1, width, generator=generator) + 0.5, torch.randn(15, 1, width, generator=generator)
    baseline = Baseline("matched", rows, baselines.matched([k % 5 for k in range(prompts)], [k % 5 for k in range(15)]))
    truth = torch.cat([torch.ones(prompts), torch.zeros(15)]).double()
    mass = torch.cat([torch.full((prompts,), 0.5 / prompts).double(), 0.5 * baseline.shares])
    expected = newton(torch.cat([harmful, rows])[:, 0].double(), truth, mass, 0.1)
    found = logistic(harmful, baseline, ridge=0.1).vectors[0, 0].double()
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_it_ignores_what_does_not_tell_the_sides_apart_and_its_units():
    generator = torch.Generator().manual_seed(1)
    harmful, rows = (torch.randn(300, 1, 4, generator=generator) for _ in range(2))
    harmful[:, :, 0] += 1
    for side in (harmful, rows):
        side[:, :, 1] += 2 * side[:, :, 0]
    baseline = Baseline("bulk", rows, baselines.unmatched(300, 300))
    found = logistic(harmful, baseline, ridge=1e-4).unit[0, 0]
    assert found[0] > 0.85
    assert found[2:].abs().max() < 0.2
    scaled = logistic(100 * harmful, Baseline("bulk", 100 * rows, baseline.weights), ridge=1e-4)
    torch.testing.assert_close(100 * scaled.vectors, logistic(harmful, baseline, ridge=1e-4).vectors, rtol=1e-3, atol=1e-4)


def test_no_ridge_is_refused():
    rows = torch.randn(4, 1, 3)
    with pytest.raises(UserError, match="must be above 0, got 0"):
        logistic(rows, Baseline("bulk", rows, baselines.unmatched(4, 4)), ridge=0.0)
