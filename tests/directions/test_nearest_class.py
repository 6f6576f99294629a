"""Predicted classes: right where classes exist, honest where they do not."""

import pytest
import torch

from resect.directions.nearest_class import predict_classes
from resect.errors import UserError


def sides(strength, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    topics = strength * torch.randn(4, 2, 20, generator=generator)
    topics[:, 0] = 0
    labels, truth = torch.arange(60) % 4, torch.arange(80) % 4
    labelled = torch.randn(60, 2, 20, generator=generator) + topics[labels] + 5
    return labelled, labels, torch.randn(80, 2, 20, generator=generator) + topics[truth], truth


def test_topics_are_found_at_the_layer_that_has_them():
    labelled, labels, rows, truth = sides(2.0)
    found = predict_classes(labelled, labels, rows)
    assert found.layer == 1
    assert found.accuracy[1] > 0.95
    assert (found.labels == truth).double().mean() > 0.95
    assert found.chance == 0.25
    assert found.accuracy[0] < 0.5


def test_left_out_means_left_out():
    """Against the loop that recomputes every mean; and topics without meaning are guessed no better than by chance."""
    labelled, labels, rows, _ = sides(0.0)
    known = labelled.double() - labelled.double().mean(0)
    right = torch.zeros(2)
    for i in range(60):
        kept = torch.arange(60) != i
        means = torch.stack([known[kept & (labels == c)].mean(0) for c in range(4)])
        right += (known[i] - means).norm(dim=2).argmin(0) == labels[i]
    found = predict_classes(labelled, labels, rows)
    assert found.accuracy.tolist() == pytest.approx((right / 60).tolist())
    assert found.accuracy.max() < 0.45


def test_a_lone_prompt_is_named():
    labelled, labels, rows, _ = sides(1.0)
    labels = torch.where(torch.arange(60) == 3, 4, labels)
    with pytest.raises(UserError, match="Class 4 has a single prompt"):
        predict_classes(labelled, labels, rows)
