"""What all methods promise: shape, norm, order of the directions, a seed that fixes everything."""

import pytest
import torch

from resect.directions import METHODS, Baseline, Directions, baselines
from resect.errors import UserError

LAYERS, WIDTH = 2, 24


@pytest.fixture(scope="module")
def sides():
    generator = torch.Generator().manual_seed(0)
    harmful, harmless = (torch.randn(n, LAYERS, WIDTH, generator=generator) for n in (40, 50))
    labels = torch.arange(40) % 2
    topics = torch.randn(2, LAYERS, WIDTH, generator=generator)
    harmful += topics[labels] + 3
    harmless += topics[torch.arange(50) % 2]
    return harmful, Baseline("matched", harmless, baselines.matched(labels.tolist(), (torch.arange(50) % 2).tolist())), labels


@pytest.mark.parametrize("name", METHODS)
def test_shape_norm_and_seed(name, sides):
    harmful, baseline, labels = sides
    method = METHODS[name]
    before = harmful.clone()
    found = method.find(harmful, baseline, labels=labels, seed=3)
    assert torch.equal(harmful, before)
    assert found.method == name == method.name
    assert found.vectors.shape[::2] == (LAYERS, WIDTH)
    assert found.vectors.dtype == torch.float32
    assert (found.vectors.shape[1] > 1) == method.several
    assert (found.vectors.norm(dim=-1) > 0).all()
    assert torch.equal(found.vectors, method.find(harmful, baseline, labels=labels, seed=3).vectors)
    if found.importance is not None:
        assert found.importance.shape == found.vectors.shape[:2]
    one = found.first(1)
    assert one.vectors.shape == (LAYERS, 1, WIDTH)
    assert torch.equal(found.first(found.vectors.shape[1]).first(1).vectors, one.vectors)
    with pytest.raises(UserError, match=f"method '{name}' found {found.vectors.shape[1]}; ask for 1 to"):
        found.first(found.vectors.shape[1] + 1)


def test_needing_labels_is_said(sides):
    harmful, baseline, _ = sides
    for method in METHODS.values():
        if method.needs_labels:
            with pytest.raises(UserError, match="class of every harmful prompt"):
                method.find(harmful, baseline)
        else:
            method.find(harmful, baseline)


def test_random_directions_have_the_norms_of_the_real_ones_and_nothing_else(sides):
    harmful, baseline, labels = sides
    for control, real in (("random", "mean_difference"), ("random_classes", "class_means")):
        found, other = (METHODS[control].find(harmful, baseline, labels=labels, seed=s).vectors for s in (0, 1))
        expected = METHODS[real].find(harmful, baseline, labels=labels).vectors
        torch.testing.assert_close(found.norm(dim=-1), expected.norm(dim=-1))
        assert torch.cosine_similarity(found, expected, dim=-1).abs().mean() < 0.4
        assert not torch.equal(found, other)


def test_the_most_important_come_first_by_layer():
    vectors = torch.arange(6.0).reshape(2, 3, 1) + 1
    found = Directions(vectors, "x", importance=torch.tensor([[1.0, 3, 2], [2, 2, 9]]), read=1 / vectors)
    assert found.first(2).vectors.flatten().tolist() == [2, 3, 6, 4]
    assert found.first(2).importance.flatten().tolist() == [3, 2, 9, 2]
    assert torch.equal(found.first(2).read, 1 / found.first(2).vectors)
