import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect.edit.algebra import apply_to_output, apply_to_weight, orthonormal_basis, scaled_factors, sequential_factors
from resect.layout import LAYOUT_OF, OUTPUT_AXIS

SEEDS = st.integers(0, 10_000)
GAMMAS = st.floats(-1, 3, width=32)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 5), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_basis_is_orthonormal_and_spans_the_vectors(seed, count, scale):
    vectors = draw(seed, count, 12) * scale
    basis = orthonormal_basis(vectors)
    torch.testing.assert_close(basis.T @ basis, torch.eye(count), atol=1e-6, rtol=0)
    outside = vectors - vectors @ basis @ basis.T
    assert float(outside.norm()) <= 1e-5 * float(vectors.norm())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_basis_drops_dependent_and_zero_vectors_only(seed):
    a, b, other = draw(seed, 3, 12)
    basis = orthonormal_basis(torch.stack([a, torch.zeros(12), 3 * a, b, a - 2 * b, other]))
    assert basis.shape == (12, 3)
    assert float((other - basis @ (basis.T @ other)).norm()) <= 1e-5
    assert orthonormal_basis(torch.stack([a, a + 1e-3 * b])).shape == (12, 2)
    assert orthonormal_basis(torch.zeros(2, 12)).shape == (12, 0)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, count=st.integers(1, 4))
def test_joint_edit_scales_the_component_and_leaves_the_rest(seed, gamma, count):
    basis = orthonormal_basis(draw(seed, count, 12))
    y = draw(seed + 1, 5, 3, 12)
    edited = apply_to_output(y, u=basis, c=basis, gamma=gamma)
    torch.testing.assert_close(edited @ basis, (1 - gamma) * (y @ basis), atol=1e-5, rtol=0)
    rest = y - y @ basis @ basis.T
    torch.testing.assert_close(edited - edited @ basis @ basis.T, rest, atol=1e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_twice_is_once_at_one_and_nothing_at_two(seed):
    basis = orthonormal_basis(draw(seed, 2, 12))
    y = draw(seed + 1, 7, 12)
    once = apply_to_output(y, u=basis, c=basis, gamma=1.0)
    torch.testing.assert_close(apply_to_output(once, u=basis, c=basis, gamma=1.0), once, atol=1e-6, rtol=0)
    reflected = apply_to_output(y, u=basis, c=basis, gamma=2.0)
    torch.testing.assert_close(reflected.norm(dim=1), y.norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(apply_to_output(reflected, u=basis, c=basis, gamma=2.0), y, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, count=st.integers(1, 4))
def test_sequential_factors_are_the_product_of_rank_one_edits(seed, gamma, count):
    vectors = draw(seed, count, 10)
    expected = draw(seed + 1, 6, 10).double()
    y = expected.float()
    for vector in vectors.double():
        unit = vector / vector.norm()
        expected = expected - gamma * torch.outer(expected @ unit, unit)
    u, c = sequential_factors(vectors, gamma=gamma)
    torch.testing.assert_close(apply_to_output(y, u=u, c=c, gamma=gamma), expected.float(), atol=1e-4, rtol=1e-4)


def test_sequential_and_joint_differ_where_directions_overlap():
    first, second = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 1, 0])
    u, c = sequential_factors(torch.stack([first, second]), gamma=1.0)
    left = apply_to_output(torch.tensor([[0.0, 1, 0]]), u=u, c=c, gamma=1.0)
    assert float(left @ first) == pytest.approx(-0.5)
    basis = orthonormal_basis(torch.stack([first, second]))
    assert float(apply_to_output(torch.tensor([[0.0, 1, 0]]), u=basis, c=basis, gamma=1.0).norm()) < 1e-6


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, gamma=GAMMAS)
def test_weights_of_every_layout_give_the_edited_output(seed, gamma):
    u, c = draw(seed, 6, 2), draw(seed + 1, 6, 2)
    x, b = draw(seed + 2, 5, 4), draw(seed + 3, 6)
    w = draw(seed + 4, 3, 6, 4)
    new_bias = apply_to_weight(b, "bias", u=u, c=c, gamma=gamma)
    for layout, weight in {"out_in": w[0], "in_out": w[0].T, "expert_out_in": w, "expert_in_out": w.mT}.items():
        new = apply_to_weight(weight, layout, u=u, c=c, gamma=gamma)
        assert new.shape == weight.shape
        assert new.is_contiguous()
        out_in = new if layout.endswith("out_in") else new.mT
        before = x @ w.mT + b if weight.ndim == 3 else x @ w[0].T + b
        torch.testing.assert_close(x @ out_in.mT + new_bias, apply_to_output(before, u=u, c=c, gamma=gamma), atol=2e-4, rtol=1e-4)


def test_weight_keeps_its_dtype_and_is_not_changed_in_place():
    weight = draw(0, 6, 4).bfloat16()
    copy = weight.clone()
    basis = orthonormal_basis(draw(1, 1, 6))
    assert apply_to_weight(weight, "out_in", u=basis, c=basis, gamma=1.0).dtype == torch.bfloat16
    assert torch.equal(weight, copy)


def test_weight_of_another_width_is_refused():
    basis = orthonormal_basis(draw(1, 1, 6))
    with pytest.raises(ValueError, match=r"shape \(4, 6\) has no output axis of length 6 in layout 'out_in'"):
        apply_to_weight(torch.ones(4, 6), "out_in", u=basis, c=basis, gamma=1.0)


def test_layouts_are_told_apart_by_axes():
    assert {layout: axis for (_, axis), layout in LAYOUT_OF.items()} == OUTPUT_AXIS


def norms(weight, axis):
    return weight.norm(dim=axis)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, count=st.integers(1, 3))
def test_column_norms_are_kept_and_the_direction_still_goes(seed, gamma, count):
    basis, w = orthonormal_basis(draw(seed, count, 12)), draw(seed + 1, 12, 7)
    new = apply_to_weight(w, "out_in", u=basis, c=basis, gamma=gamma, preserve="column")
    torch.testing.assert_close(norms(new, 0), norms(w, 0), rtol=1e-5, atol=0)
    # The closed form, one scale a column.
    inside = (basis.T @ w).square().sum(0) / w.square().sum(0)
    expected = (w - gamma * basis @ (basis.T @ w)) / (1 - gamma * (2 - gamma) * inside).sqrt()
    torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-4)
    gone = apply_to_weight(w, "out_in", u=basis, c=basis, gamma=1.0, preserve="column")
    assert float((basis.T @ gone).norm()) <= 1e-5 * float(w.norm())


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, gamma=GAMMAS)
def test_row_norms_are_kept_and_a_part_of_the_direction_comes_back(seed, gamma):
    v, w = orthonormal_basis(draw(seed, 1, 12)), draw(seed + 1, 12, 7) * torch.linspace(0.1, 3, 12)[:, None]
    new = apply_to_weight(w, "out_in", u=v, c=v, gamma=gamma, preserve="row")
    torch.testing.assert_close(norms(new, 1), norms(w, 1), rtol=1e-5, atol=0)
    # The closed form of the norms: with unit rows and a = W^T v, 1 - 2 g v_i (W a)_i + g^2 v_i^2 |a|^2.
    unit = w / norms(w, 1)[:, None]
    a = unit.T @ v[:, 0]
    left = (1 - 2 * gamma * v[:, 0] * (unit @ a) + (gamma * v[:, 0]) ** 2 * (a @ a)).sqrt()
    expected = norms(w, 1)[:, None] * (unit - gamma * torch.outer(v[:, 0], a)) / left[:, None]
    torch.testing.assert_close(new, expected, rtol=1e-3, atol=1e-4)


def test_the_leak_of_row_norms_is_real():
    v, w = orthonormal_basis(draw(0, 1, 12)), draw(1, 12, 7) * torch.linspace(0.1, 3, 12)[:, None]
    share = {
        kind: float((v.T @ apply_to_weight(w, "out_in", u=v, c=v, gamma=1.0, preserve=kind)).norm() / (v.T @ w).norm())
        for kind in ("nothing", "column", "row")
    }
    assert share["nothing"] < 1e-6
    assert share["column"] < 1e-6
    assert share["row"] > 0.02


@pytest.mark.parametrize("kind", ["column", "row"])
def test_norms_are_kept_in_every_layout_and_what_is_gone_stays_gone(kind):
    basis, w = orthonormal_basis(draw(0, 2, 6)), draw(1, 3, 6, 4)
    w[1, :, 2], w[2, 3] = basis[:, 0], 0.0
    axis = {"column": 0, "row": 1}[kind]
    for layout, weight in {"expert_out_in": w, "expert_in_out": w.mT}.items():
        new = apply_to_weight(weight, layout, u=basis, c=basis, gamma=1.0, preserve=kind)
        found = new if layout == "expert_out_in" else new.mT
        for e in range(3):
            alone = apply_to_weight(w[e], "out_in", u=basis, c=basis, gamma=1.0, preserve=kind)
            torch.testing.assert_close(found[e], alone, atol=1e-6, rtol=1e-5)
        assert torch.isfinite(new).all()
        change = (norms(found, axis + 1) / norms(w, axis + 1) - 1).abs()
        change[{"column": (1, 2), "row": (2, 3)}[kind]] = 0.0
        assert float(change.max()) < 1e-5
    assert float(apply_to_weight(w[1], "out_in", u=basis, c=basis, gamma=1.0, preserve="column")[:, 2].norm()) < 1e-6
    assert float(apply_to_weight(w[2], "out_in", u=basis, c=basis, gamma=1.0, preserve="row")[3].norm()) == 0


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, gamma=st.floats(0.125, 1.5, width=32), count=st.integers(1, 4))
def test_scales_of_one_change_nothing_and_others_weigh_each_direction(seed, gamma, count):
    vectors, scales = draw(seed, count, 12), torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 2
    y, one = draw(seed + 1, 5, 12), torch.ones(count)
    basis = orthonormal_basis(vectors)
    joint, u, c = apply_to_output(y, u=basis, c=basis, gamma=gamma), *scaled_factors(vectors, one)
    torch.testing.assert_close(apply_to_output(y, u=u, c=c, gamma=gamma), joint, atol=1e-5, rtol=0)
    u, c = scaled_factors(vectors, scales)
    torch.testing.assert_close(apply_to_output(y, u=u, c=c, gamma=gamma) @ basis, (1 - gamma * scales) * (y @ basis), atol=1e-4, rtol=0)
    u, c = sequential_factors(vectors, gamma=gamma, scales=scales)
    expected = y.double()
    for vector, scale in zip(torch.nn.functional.normalize(vectors.double(), dim=1), scales.double(), strict=True):
        expected = expected - gamma * scale * (expected @ vector)[:, None] * vector
    torch.testing.assert_close(apply_to_output(y, u=u, c=c, gamma=gamma).double(), expected, atol=1e-4, rtol=0)


def test_a_dropped_direction_takes_its_scale_with_it():
    a, b = draw(0, 2, 12)
    u, c = scaled_factors(torch.stack([a, 2 * a, b]), torch.tensor([0.5, 9.0, 0.25]))
    torch.testing.assert_close((u / c).mean(0), torch.tensor([0.5, 0.25]), atol=1e-5, rtol=0)
