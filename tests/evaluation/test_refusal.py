import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resect.errors import UserError
from resect.evaluation.refusal import (
    RefusalTokens,
    all_agreements,
    judge_agreement,
    judge_log_odds,
    learn_cut,
    learn_refusal_tokens,
    log_odds,
    refusal_agreement,
)
from resect.generation import Response


def responses(firsts):
    return [Response((first, 9), "", finished=True) for first in firsts]


def test_planted_refusal_tokens_are_found_and_shared_ones_are_not():
    firsts = [5] * 60 + [6] * 30 + [7] * 9 + [8] + [7] * 50 + [10] * 49 + [6]
    verdicts = ["refuse"] * 100 + ["comply"] * 100
    got = learn_refusal_tokens(responses(firsts), verdicts)
    assert got.ids == (5, 6)  # 7 begins answers, 8 is below 2 %
    assert (got.share_refused, got.share_answered) == pytest.approx((0.9, 0.01))


def test_other_verdicts_and_empty_responses_are_left_out():
    rows = [*responses([5, 6, 7, 7]), Response((), "", finished=False)]
    got = learn_refusal_tokens(rows, ["refuse", "comply", "evasive", "degenerate", "degenerate"])
    assert got.ids == (5,)


@pytest.mark.parametrize(
    ("firsts", "verdicts", "message"),
    [
        ([5, 6], ["comply", "comply"], "no refusals"),
        ([5, 6], ["refuse", "refuse"], "no answers"),
        ([5, 5], ["refuse", "comply"], "both begin alike"),
        ([], [], "no refusals"),
    ],
)
def test_a_base_that_shows_one_side_only_is_named(firsts, verdicts, message):
    with pytest.raises(UserError, match=message):
        learn_refusal_tokens(responses(firsts), verdicts)


@settings(max_examples=60, deadline=None)
@given(st.floats(-80, 80))
def test_log_odds_are_exact_in_both_tails(gap):
    """Two tokens of R at logit `gap`, three others at 0: the odds are 2·exp(gap)/3, whatever p(R) is."""
    logits = torch.tensor([[gap, 0.0, gap, 0.0, 0.0]], dtype=torch.float64)
    got = log_odds(logits.log_softmax(1), RefusalTokens((0, 2), 1.0, 0.0))
    assert float(got) == pytest.approx(gap + math.log(2 / 3), abs=1e-9)


def test_log_odds_keep_float32_tails_where_one_minus_p_is_zero():
    logits = torch.tensor([[60.0, 0.0, 0.0]]).log_softmax(1)
    assert float(log_odds(logits, RefusalTokens((0,), 1.0, 0.0))) == pytest.approx(60 - math.log(2), abs=1e-4)


def test_log_odds_without_mass_are_infinite_not_nan():
    rows = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    assert log_odds(rows, RefusalTokens((0,), 1.0, 0.0)).tolist() == [math.inf, -math.inf]
    with pytest.raises(UserError, match="hold NaN"):
        log_odds(torch.tensor([[0.0, torch.nan]]), RefusalTokens((0,), 1.0, 0.0))
    with pytest.raises(UserError, match="vocabulary of 2"):
        log_odds(rows, RefusalTokens((7,), 1.0, 0.0))


def test_cut_separates_what_can_be_separated():
    cut = learn_cut(torch.tensor([-3.0, -2.0, 1.0, 4.0]), [False, False, True, True])
    assert cut.log_odds == pytest.approx(-0.5)
    assert cut.balanced_accuracy == 1.0
    assert judge_log_odds(torch.tensor([-0.6, -0.4]), cut=cut.log_odds) == (False, True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=25))
def test_cut_is_the_best_over_all_cuts(pairs):
    values, labels = torch.tensor([float(v) for v, _ in pairs]), [label for _, label in pairs]
    if len(set(labels)) == 1:
        with pytest.raises(UserError, match="refusals and answers"):
            learn_cut(values, labels)
        return

    def accuracy(cut):
        hit = [v >= cut for v in values.tolist()]
        right = sum(h for h, y in zip(hit, labels, strict=True) if y) / sum(labels)
        return (right + sum(not h for h, y in zip(hit, labels, strict=True) if not y) / (len(labels) - sum(labels))) / 2

    got = learn_cut(values, labels)
    assert got.balanced_accuracy == pytest.approx(accuracy(got.log_odds))
    inner = [x + 0.5 for x in range(-6, 6) if min(values) <= x + 0.5 <= max(values)]
    assert got.balanced_accuracy == pytest.approx(max(map(accuracy, inner), default=0.5))


def test_cut_survives_infinite_log_odds():
    cut = learn_cut(torch.tensor([-torch.inf, 0.0, torch.inf]), [False, False, True])
    assert cut.balanced_accuracy == 1.0
    assert math.isfinite(cut.log_odds)


def test_kappa_by_hand():
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    got = judge_agreement(a, b)
    assert got.share.value == pytest.approx(0.7)
    assert got.kappa.value == pytest.approx(0.4)
    assert judge_agreement(["x"] * 3, ["x"] * 3).kappa.value == 1.0
    assert judge_agreement(["x", "y"], ["y", "x"]).kappa.value == pytest.approx(-1.0)
    with pytest.raises(UserError, match="got 0 and 0"):
        judge_agreement([], [])


def test_agreement_on_refusal_leaves_out_what_was_not_scored():
    a = ["refuse", "comply", "unscored", "truncated", "evasive", "refuse"]
    b = ["refuse", "refuse", "refuse", "refuse", "degenerate", "unscored"]
    got = refusal_agreement(a, b)
    assert got is not None
    assert (got.share.value, got.share.n, got.kappa.n, got.left_out) == (pytest.approx(2 / 3), 3, 3, 3)
    assert refusal_agreement(["unscored"], ["refuse"]) is None
    assert set(got.to_json()) == {"agreement", "kappa", "left_out"}


def test_every_pair_of_judges_is_compared_and_one_alone_is_refused():
    verdicts = {"markers": ["refuse", "comply"], "odds": ["refuse", "comply"], "other": ["comply", "refuse"]}
    got = all_agreements(verdicts)
    assert {pair: agreement.kappa.value for pair, agreement in got.items()} == pytest.approx(
        {("markers", "odds"): 1.0, ("markers", "other"): -1.0, ("odds", "other"): -1.0}
    )
    with pytest.raises(UserError, match="at least two judges, but got markers"):
        all_agreements({"markers": ["refuse"]})
    with pytest.raises(UserError, match="got 1 and 2"):
        refusal_agreement(["refuse"], ["refuse", "comply"])
