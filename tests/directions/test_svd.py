"""SVD of differences: orthonormal, the best subspace, what centring takes away."""

import pytest
import torch

from resect.directions import Baseline, baselines, mean_of_differences
from resect.directions.svd import svd, svd_centred
from resect.edit.algebra import orthonormal_basis
from resect.errors import UserError


def planted(*, prompts=60, width=32, shared=6.0, topic=3.0, seed=0):
    """Differences = a direction all prompts share + a topic axis on which they differ evenly + noise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q.T
    sides = torch.tensor([1.0, -1.0]).repeat(prompts // 2)
    harmful = 0.1 * torch.randn(prompts, 1, width, generator=generator) + shared * axes[0] + topic * sides[:, None, None] * axes[1]
    rows = 0.1 * torch.randn(prompts, 1, width, generator=generator)
    return harmful, Baseline("bulk", rows, baselines.unmatched(prompts, prompts)), axes


def test_uncentred_finds_what_is_shared_first_and_centred_what_varies():
    harmful, baseline, axes = planted()
    plain, centred = (method(harmful, baseline, count=2).unit[0] for method in (svd, svd_centred))
    assert (plain[0] @ axes[0]) > 0.999
    assert (plain[1] @ axes[1]).abs() > 0.999
    assert (centred[0] @ axes[1]).abs() > 0.999
    assert (centred @ axes[0]).abs().max() < 0.5


def test_directions_are_orthonormal_and_so_is_their_basis():
    harmful, baseline, _ = planted()
    for method in (svd, svd_centred):
        unit = method(harmful, baseline, count=9).unit[0].double()
        assert (unit @ unit.T - torch.eye(9)).abs().max() < 1e-6
    some = harmful[:9, 0]
    basis = orthonormal_basis(some).double()
    assert (basis.T @ basis - torch.eye(9)).abs().max() < 1e-6
    assert (some.double() - some.double() @ basis @ basis.T).norm() < 1e-5 * some.norm()


def test_lengths_are_root_mean_squares_against_eigenvalues():
    harmful, baseline, _ = planted(topic=1.0)
    differences = (harmful - baseline.subtrahends)[:, 0].double()
    expected = torch.linalg.eigvalsh(differences.T @ differences / len(differences)).flip(0)[:4].sqrt()
    found = svd(harmful, baseline, count=4)
    torch.testing.assert_close(found.vectors[0].norm(dim=1).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.importance[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_sign_follows_the_mean_difference():
    harmful, baseline, _ = planted()
    mean = mean_of_differences(harmful, baseline).vectors
    assert (svd(harmful, baseline, count=9).vectors @ mean.mT >= 0).all()
    turned = Baseline("bulk", 2 * harmful - baseline.rows, baseline.weights)
    assert (svd(harmful, turned, count=1).vectors @ mean.mT < 0).all()


def test_how_many_follows_the_classes_unless_said_and_too_many_are_refused():
    harmful, baseline, _ = planted(prompts=8)
    assert svd(harmful, baseline, labels=torch.arange(8) % 3).vectors.shape[1] == 3
    with pytest.raises(UserError, match="9 directions were asked for, and 8 prompts give at most 8"):
        svd(harmful, baseline)
    with pytest.raises(UserError, match="8 directions were asked for, and 8 prompts give at most 7"):
        svd_centred(harmful, baseline, count=8)
