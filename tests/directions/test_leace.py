"""Concept erasure against its authors' implementation, and against the probes it must blind."""

import warnings

import pytest
import torch

from resect.directions import Baseline, baselines, mean_of_differences
from resect.directions.leace import leace, leace_classes

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function with torch.jit as it is imported
    from concept_erasure import LeaceFitter


def sides(*, prompts=150, rows=200, width=12, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, width, width, generator=generator)
    harmful, harmless = (torch.einsum("nli,lij->nlj", torch.randn(n, 2, width, generator=generator), mixing) for n in (prompts, rows))
    labels = torch.arange(prompts) % classes
    harmful += 3 * torch.randn(classes, 2, width, generator=generator)[labels] + 1
    return harmful, Baseline("bulk", harmless, baselines.unmatched(prompts, rows)), labels


def erased(harmful, baseline, found, layer):
    x = torch.cat([harmful, baseline.rows])[:, layer].double()
    u, c = found.vectors[layer].double(), found.read[layer].double()
    return x - (x - x.mean(0)) @ c.T @ u


def reference(harmful, baseline, z, layer):
    x = torch.cat([harmful, baseline.rows])[:, layer].double()
    fitter = LeaceFitter.fit(x, z.double(), shrinkage=False, constrain_cov_trace=False, svd_tol=1e-8)
    return fitter.eraser


@pytest.mark.parametrize("per_class", [False, True])
def test_it_is_the_erasure_of_its_authors(per_class):
    harmful, baseline, labels = sides()
    found = (leace_classes if per_class else leace)(harmful, baseline, labels=labels, shrinkage=0.0)
    sorts = torch.cat([labels + 1 if per_class else torch.ones_like(labels), torch.zeros(len(baseline.rows), dtype=torch.long)])
    z = torch.nn.functional.one_hot(sorts)
    for layer in range(2):
        eraser = reference(harmful, baseline, z, layer)
        ours = torch.eye(12).double() - found.vectors[layer].double().T @ found.read[layer].double()
        assert (ours - eraser.P).abs().max() < 1e-4
        x = torch.cat([harmful, baseline.rows])[:, layer].double()
        assert (erased(harmful, baseline, found, layer) - eraser(x)).abs().max() < 1e-4


def accuracy(x, truth):
    """Return the accuracy of least squares on class indicators, fitted and read on the same rows: no linear probe has an easier task.

    What float32 directions leave by rounding is below the probe's tolerance.
    """
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    z = torch.nn.functional.one_hot(truth).double()
    return (x @ torch.linalg.pinv(x, rtol=1e-4) @ z).argmax(1).eq(truth).double().mean()


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_no_linear_probe_is_left_above_chance(shrinkage):
    harmful, baseline, labels = sides()
    for find, truth in (
        (leace, torch.cat([torch.ones(150), torch.zeros(200)]).long()),
        (leace_classes, torch.cat([labels + 1, torch.zeros(200, dtype=torch.long)])),
    ):
        found = find(harmful, baseline, labels=labels, shrinkage=shrinkage)
        chance = torch.bincount(truth).max() / len(truth)
        for layer in range(2):
            assert accuracy(torch.cat([harmful, baseline.rows])[:, layer].double(), truth) > chance + 0.1
            gone = erased(harmful, baseline, found, layer)
            assert accuracy(gone, truth) <= chance + 1e-9
            means = torch.stack([gone[truth == k].mean(0) for k in range(int(truth.max()) + 1)])
            assert (means - means[0]).norm() < 1e-3


def test_it_moves_less_than_the_orthogonal_removal():
    harmful, baseline, labels = sides()
    found = leace(harmful, baseline, labels=labels, shrinkage=0.0)
    unit = mean_of_differences(harmful, baseline).unit.double()
    for layer in range(2):
        x = torch.cat([harmful, baseline.rows])[:, layer].double()
        plain = x - (x - x.mean(0)) @ unit[layer].T @ unit[layer]
        assert (erased(harmful, baseline, found, layer) - x).square().sum() < 0.9 * (plain - x).square().sum()


def test_the_pair_is_biorthogonal_and_removes_the_mean_difference():
    harmful, baseline, labels = sides()
    one, several = leace(harmful, baseline), leace_classes(harmful, baseline, labels=labels)
    for found in (one, several):
        products = found.read.double() @ found.vectors.double().mT
        assert (products - torch.eye(products.shape[1])).abs().max() < 1e-4
        assert torch.equal(found.first(1).read, found.read[:, :1])
    raw = mean_of_differences(harmful, baseline).vectors
    torch.testing.assert_close(one.vectors.abs(), raw.abs(), rtol=1e-5, atol=1e-5)
