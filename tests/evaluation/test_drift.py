import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from resect.errors import UserError
from resect.evaluation.drift import _check_pair, by_category, by_position, kl_first_token, kl_rows, kl_tokens, quantiles, top1_flips
from resect.evaluation.logprobs import TokenLogprobs

logits = st.lists(st.floats(-60, 60), min_size=5, max_size=5)


@settings(max_examples=80, deadline=None)
@given(logits, logits)
def test_kl_matches_scipy_and_is_never_negative(a, b):
    p, q = (torch.tensor([x], dtype=torch.float64).log_softmax(1) for x in (a, b))
    expected = float(rel_entr(p.exp().numpy(), q.exp().numpy()).sum())
    assert float(kl_rows(p, q)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(kl_rows(p.float(), p.float())) == 0.0
    assert float(kl_rows(p.float(), q.float())) >= 0.0


def test_tiny_kl_of_float32_rows_is_resolved():
    """Second order: KL of a logit nudge d on one token is p(1−p)d²/2; float32 sums would drown it in rounding."""
    base = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nudged = base.clone()
    nudged[0, 3] += 1e-3
    p = float(base.softmax(1)[0, 3])
    assert float(kl_rows(base.log_softmax(1), nudged.log_softmax(1))) == pytest.approx(p * (1 - p) * 0.5e-6, rel=1e-2)


def test_kl_with_missing_tokens_is_zero_or_infinite_never_nan():
    half, one, other = math.log(0.5), 0.0, -math.inf
    p = torch.tensor([[half, half, other], [one, other, other]])
    q = torch.tensor([[one, other, other], [half, half, other]])
    assert kl_rows(p, p).tolist() == [0.0, 0.0]
    assert kl_rows(p, q).tolist() == [math.inf, pytest.approx(math.log(2))]


def test_kl_keeps_its_direction():
    p, q = (torch.tensor([[a, 1 - a]]).log() for a in (0.9, 0.5))
    assert float(kl_first_token(p, q)) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert float(kl_first_token(q, p)) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5), rel=1e-5)


def scored(offsets, seed):
    generator = torch.Generator().manual_seed(seed)
    return TokenLogprobs(torch.randn(offsets[-1], 11, generator=generator).log_softmax(1), offsets)


def test_tokens_are_averaged_per_prompt_and_listed_by_position():
    base, edited = scored((0, 3, 4, 6), 0), scored((0, 3, 4, 6), 1)
    per_token = kl_rows(base.rows, edited.rows)
    assert kl_tokens(base, edited).tolist() == pytest.approx([float(per_token[a:b].mean()) for a, b in ((0, 3), (3, 4), (4, 6))])
    positions = by_position(per_token, base.offsets)
    assert [p.n for p in positions] == [3, 2, 1]
    assert positions[1].mean == pytest.approx(float(per_token[[1, 5]].mean()))


def test_flips_count_changed_winners():
    base = torch.tensor([[0.1, 2.0, 0.3], [3.0, 2.0, 0.3]]).log_softmax(1)
    edited = torch.tensor([[0.1, 1.0, 0.3], [1.0, 2.0, 0.3]]).log_softmax(1)
    assert top1_flips(base, edited).tolist() == [False, True]


def test_quantiles_match_numpy_by_category():
    values = torch.linspace(0, 7, 23, dtype=torch.float64) ** 2
    got, data = quantiles(values), values.numpy()
    assert (got.median, got.p90, got.p99) == pytest.approx(tuple(np.quantile(data, [0.5, 0.9, 0.99])))
    assert (got.mean, got.max, got.n) == pytest.approx((data.mean(), 49.0, 23))
    groups = by_category(torch.tensor([1.0, 2.0, 3.0]), ["b", None, "b"])
    assert {name: q.mean for name, q in groups.items()} == {"b": 2.0, "uncategorised": 2.0}


def test_bad_input_is_named():
    p = torch.zeros(1, 3).log_softmax(1)
    with pytest.raises(UserError, match="NaN"):
        kl_rows(p, torch.full((1, 3), torch.nan))
    with pytest.raises(UserError, match="no mass"):
        kl_rows(p, torch.full((1, 3), -torch.inf))
    with pytest.raises(UserError, match=r"shape \(1, 3\) and \(1, 4\)"):
        _check_pair(p, torch.zeros(1, 4))
    with pytest.raises(UserError, match="different responses"):
        kl_tokens(scored((0, 1, 3), 0), scored((0, 2, 3), 0))
    with pytest.raises(UserError, match="at least one value"):
        quantiles(torch.zeros(0))
    with pytest.raises(UserError, match="2 categories for 1"):
        by_category(torch.zeros(1), ["a", "b"])
