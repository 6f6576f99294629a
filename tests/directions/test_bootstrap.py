"""Error bars cover the truth as often as they say, in every design; and say so where they cannot."""

import pytest
import torch

from resect.directions import Baseline, baselines, mean_of_differences
from resect.directions.bootstrap import bootstrap, component, split_half
from resect.directions.samples import samples
from resect.errors import UserError

DESIGNS = ("unmatched", "matched", "paired")


def weights(design, n):
    keys = [k % 4 for k in range(n)]
    if design == "unmatched":
        return baselines.unmatched(n, n)
    return baselines.matched(keys, keys) if design == "matched" else baselines.matched(range(n), range(n))


def synthetic(design, *, n=80, width=24, layers=500, signal=2.0, seed=0):
    """Return rows whose every layer is one synthetic draw, the baseline and the true direction; variances fall as 1 / k."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, width + 1) ** -0.5
    truth = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    truth = truth * signal * (2 / n * spread.square().sum()).sqrt()
    harmful, rows = (torch.randn(n, layers, width, generator=generator) * spread for _ in range(2))
    topics = {"unmatched": 1, "matched": 4, "paired": n}[design]
    shared = 2 * torch.randn(topics, layers, width, generator=generator)[torch.arange(n) % topics]
    return harmful + shared + truth, Baseline(design, rows + shared, weights(design, n)), truth


def covered(design, seed):
    """Return for 50 synthetic draws whether cone, signal and component intervals hold the truth; resampled with their own seed."""
    harmful, baseline, truth = synthetic(design, width=48, layers=50, seed=seed)
    bars = bootstrap(harmful, baseline, draws=400, seed=seed)
    _, low, high = component(harmful, baseline, truth.expand(50, -1), draws=400, seed=seed)
    found = mean_of_differences(harmful, baseline).unit[:, 0]
    length = truth.norm()
    within = [torch.rad2deg(torch.acos(found @ truth / length)) <= bars.cone]
    within += [(start <= length) & (length <= end) for start, end in ((bars.signal_low, bars.signal_high), (low, high))]
    assert ((bars.angle_low < bars.angle) & (bars.angle < bars.cone) & (bars.cone < bars.angle_high)).all()
    return torch.stack(within)


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_truth_93_to_97_times_in_100(design):
    cone, signal, along = torch.cat([covered(design, seed) for seed in range(10)], dim=1).double().mean(1).tolist()
    assert 0.93 <= cone <= 0.97
    assert 0.93 <= signal <= 0.97
    assert 0.93 <= along <= 0.97


def test_the_length_is_freed_of_noise():
    harmful, baseline, truth = synthetic("unmatched", signal=1.0, layers=100)
    bars = bootstrap(harmful, baseline, draws=200)
    power = (bars.norm.square() - bars.noise.square()).mean()
    assert power == pytest.approx(float(truth.square().sum()), rel=0.15)
    assert bars.norm.square().mean() > 1.7 * truth.square().sum()
    assert bars.signal_to_noise.median() == pytest.approx(1.0, abs=0.2)


def test_prompts_needed_give_the_angle():
    harmful, baseline, _ = synthetic("unmatched", n=400, layers=20, signal=4.0)
    needed = int(bootstrap(harmful, baseline, draws=200).prompts_needed(20.0).median())
    assert needed < 400
    _, _, truth = synthetic("unmatched", n=400, layers=20, signal=4.0)
    fewer, smaller, _ = synthetic("unmatched", n=needed, layers=200, signal=4.0 * (needed / 400) ** 0.5, seed=0)
    found = mean_of_differences(fewer, smaller).unit[:, 0]
    angles = torch.acos(found @ truth / truth.norm())
    assert float(torch.rad2deg(angles.tan().square().mean().sqrt().atan())) == pytest.approx(20.0, abs=2.0)
    with pytest.raises(UserError, match="between 0 and 90 degrees, got 90"):
        bootstrap(harmful, baseline, draws=10).prompts_needed(90.0)


def test_no_signal_needs_endless_prompts():
    harmful, baseline, _ = synthetic("unmatched", signal=0.0, layers=50)
    bars = bootstrap(harmful, baseline, draws=100)
    assert bars.prompts_needed(10.0).isinf().any()
    assert (bars.signal_low == 0).double().mean() > 0.9


def test_halves_agree_where_there_is_a_signal():
    for design in DESIGNS:
        strong, weak = (split_half(*synthetic(design, layers=20, signal=s)[:2], draws=50) for s in (6.0, 0.0))
        assert (strong[0] > 0.8).all()
        assert weak[0].mean().abs() < 0.25
        assert ((strong[1] <= strong[0]) & (strong[0] <= strong[2])).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_the_gram_matrix_says_what_the_rows_say(design):
    """Lengths, and the direction of prompts and rows counted more than once, against the mean formed from copies of them."""
    harmful, baseline, _ = synthetic(design, n=8, layers=2)
    data = samples(harmful + 1e3, Baseline("far", baseline.rows + 1e3, baseline.weights))
    direct = mean_of_differences(harmful, baseline).vectors[:, 0].double()
    torch.testing.assert_close(data.norms_squared(data.whole[None])[:, 0], direct.square().sum(1), rtol=1e-2, atol=1e-2)
    twice = torch.tensor([[2.0, 0, 1, 1, 1, 1, 1, 1]]).double()
    copies = [0, 0, 2, 3, 4, 5, 6, 7]
    again = Baseline("again", baseline.rows, baseline.weights[copies])
    expected = mean_of_differences(harmful[copies], again).vectors[:, 0].double()
    q = data.coefficients(twice, torch.ones(1, 8).double())[0]
    found = torch.einsum("s,sld->ld", q, torch.cat([harmful, baseline.rows]).double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_pair_is_drawn_together_and_the_seed_decides():
    harmful, baseline, _ = synthetic("paired", n=10, layers=1)
    same = Baseline("same", harmful - 1, baseline.weights)
    bars = bootstrap(harmful, same, draws=50)
    assert bars.noise.max() < 1e-5
    assert bars.cone.max() < 1e-2
    one, two, other = (bootstrap(harmful, baseline, draws=50, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.cone, two.cone)
    assert not torch.equal(one.cone, other.cone)


def test_what_cannot_be_told_is_refused():
    rows = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="at least two harmful prompts"):
        bootstrap(rows[:1], Baseline("bulk", rows, baselines.unmatched(1, 4)))
    lone = Baseline("matched", rows[:3], baselines.matched(list("aabb"), list("aab")))
    with pytest.raises(UserError, match="all of its kind and is subtracted from 2 harmful ones"):
        bootstrap(rows, lone)
