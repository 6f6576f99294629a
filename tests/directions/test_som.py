"""Self-organising maps against MiniSom itself, class means and planted clusters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from minisom import MiniSom

from resect.directions import Baseline, baselines
from resect.directions.class_means import class_means, members
from resect.directions.som import Grid, orthogonalised, som, som_svd
from resect.errors import UserError

QUICK = Grid(rows=2, columns=2, iterations=600)
ONE = Grid(rows=1, columns=1, iterations=2000)


def clusters(seed=0, width=24):
    """Two classes; the first has three quarters of its prompts around one centre, the rest around another."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.nn.functional.normalize(torch.randn(3, width, generator=generator), dim=1)
    which = torch.tensor([0] * 30 + [1] * 10 + [2] * 20)
    labels = torch.tensor([0] * 40 + [1] * 20)
    harmful = (centres[which] + 0.2 * torch.randn(60, width, generator=generator))[:, None]
    rows = 0.2 * torch.randn(50, 1, width, generator=generator)
    return harmful, Baseline("bulk", rows, baselines.unmatched(60, 50)), labels, centres


def test_one_neuron_is_the_class_mean():
    harmful, baseline, labels, _ = clusters()
    means = class_means(harmful, baseline, labels=labels)
    exact = som(harmful, baseline, labels=labels, grid=Grid(rows=1, columns=1, iterations=2000, read="members"))
    assert (exact.vectors - means.vectors).norm(dim=-1).max() < 1e-6
    assert torch.equal(exact.importance, means.importance)
    # The neuron itself still follows the last draws: by sqrt(rate / 2) standard deviations at most, which one class's bound is made of.
    neuron = som(harmful, baseline, labels=labels, grid=ONE)
    spread = torch.tensor([(harmful[labels == c, 0] - harmful[labels == c, 0].mean(0)).norm(dim=1).square().mean().sqrt() for c in (0, 1)])
    assert ((neuron.vectors - means.vectors)[0].norm(dim=1) < 3 * (ONE.learning_rate / 2) ** 0.5 * spread).all()


def test_a_batch_map_has_come_to_rest():
    """One neuron is the class mean, and every neuron the mean of what it wins: both readings are one."""
    harmful, baseline, labels, _ = clusters()
    means = class_means(harmful, baseline, labels=labels)
    one = som(harmful, baseline, labels=labels, grid=replace(ONE, iterations=200, training="batch"))
    assert (one.vectors - means.vectors).norm(dim=-1).max() < 1e-6
    batch = Grid(rows=2, columns=2, iterations=1500, winners=3, training="batch")
    neuron, its_members = (som(harmful, baseline, labels=labels, grid=replace(batch, read=read)) for read in ("neuron", "members"))
    assert (neuron.vectors - its_members.vectors).norm(dim=-1).max() < 1e-5
    assert torch.equal(neuron.importance, its_members.importance)
    moving = [som(harmful, baseline, labels=labels, grid=replace(batch, read=read, training="random")) for read in ("neuron", "members")]
    assert (moving[0].vectors - moving[1].vectors).norm(dim=-1).max() > 1e-2


def test_the_winner_is_where_most_prompts_are():
    harmful, baseline, labels, centres = clusters()
    found = som(harmful, baseline, labels=labels, grid=Grid(rows=1, columns=2, iterations=1000, sigma=0.1, winners=2))
    subtrahend = baseline.rows.mean(0)[0]
    assert found.importance[0].tolist()[:2] == [30, 10]
    assert found.importance[0].sum() == 60
    for k in (0, 1):
        assert torch.cosine_similarity(found.vectors[0, k], centres[k] - subtrahend, dim=0) > 0.99
    one = som(harmful, baseline, labels=labels, grid=Grid(rows=1, columns=2, iterations=1000, sigma=0.1))
    assert torch.equal(one.vectors[0, 0], found.vectors[0, 0])


def test_the_basis_of_the_rows_changes_no_map():
    harmful, baseline, labels, _ = clusters(width=96)
    found = som(harmful, baseline, labels=labels, grid=QUICK, seed=5).vectors[0, 0].double()
    rows = (harmful.double() - baseline.subtrahends.double())[labels == 0, 0].numpy()
    plain = MiniSom(2, 2, 96, sigma=QUICK.sigma, learning_rate=QUICK.learning_rate, random_seed=5)
    # MiniSom first draws weights that it then replaces, one number for every dimension: draw as many as a map in the rows' span does.
    plain._random_generator = np.random.RandomState(5)
    plain._random_generator.rand(2, 2, len(rows))
    plain.random_weights_init(rows)
    plain.train_random(rows, QUICK.iterations)
    hits = np.array([np.ravel_multi_index(plain.winner(row), (2, 2)) for row in rows])
    expected = plain.get_weights().reshape(4, -1)[np.bincount(hits, minlength=4).argmax()]
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_a_constant_added_to_all_differences_moves_the_neurons_by_it():
    harmful, baseline, labels, _ = clusters()
    shift = torch.randn(1, 24, generator=torch.Generator().manual_seed(9))
    moved = Baseline("moved", baseline.rows - shift, baseline.weights)
    plain, other = (som(harmful, b, labels=labels, grid=QUICK).vectors for b in (baseline, moved))
    torch.testing.assert_close(other, plain + shift, rtol=0, atol=1e-4)


def test_orthogonal_form_spans_the_same_in_order():
    harmful, baseline, labels, _ = clusters()
    plain, found = (method(harmful, baseline, labels=labels, grid=QUICK) for method in (som, som_svd))
    unit = found.unit[0].double()
    assert (unit @ unit.T - torch.eye(2)).abs().max() < 1e-6
    assert (plain.vectors[0].double() - plain.vectors[0].double() @ unit.T @ unit).norm() < 1e-5 * plain.vectors.norm()
    assert found.importance[0, 0] > found.importance[0, 1]
    torch.testing.assert_close(found.importance[0], torch.linalg.svdvals(plain.vectors[0]), rtol=1e-5, atol=1e-6)
    assert torch.equal(orthogonalised(plain, "som_svd").vectors, found.vectors)
    assert (found.vectors[0] @ plain.vectors[0].mean(0) >= 0).all()


def test_maps_report_progress_and_bad_classes_are_named():
    harmful, baseline, labels, _ = clusters()
    calls = []
    som(harmful, baseline, labels=labels, grid=ONE, progress=lambda: calls.append(1))
    assert len(calls) == 2
    with pytest.raises(UserError, match="Class 1 has 20 prompts and its map 25 neurons; give at least as many prompts, or a smaller grid"):
        som(harmful, baseline, labels=labels, grid=Grid(rows=5, columns=5))
    with pytest.raises(UserError, match=r"Only \d neurons of a map win prompts, and 4 winners"):
        som(harmful.mean(0).expand(60, 1, 24), baseline, labels=labels, grid=Grid(rows=2, columns=2, iterations=50, winners=4))
    for wrong, message in (
        (labels * 2, "Class 1 of 3 has no harmful prompt"),
        (labels * 0, "All harmful prompts are of one class"),
    ):
        with pytest.raises(UserError, match=message):
            som(harmful, baseline, labels=wrong, grid=ONE)
    with pytest.raises(UserError, match="60 harmful prompts and 5 classes"):
        members(labels[:5], 60)
