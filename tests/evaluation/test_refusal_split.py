"""The split of KL against brute force over whole responses."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.errors import UserError
from resect.evaluation.drift import kl_rows
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.refusal_split import kl_of_refusing
from resect.evaluation.token_drift import compare

VOCAB, REFUSE = 4, (1, 3)
SEEDS = st.integers(0, 10_000)


def chain(seed: int, *, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(y₁) and log p(y₂ | y₁) of a model of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (scale * torch.randn(n, VOCAB, generator=generator, dtype=torch.float64) for n in (1, VOCAB))
    return first.log_softmax(1)[0], second.log_softmax(1)


def kl(pairs) -> float:
    return sum(math.exp(p) * (p - q) for p, q in pairs)


@given(SEEDS, SEEDS)
def test_refusing_plus_the_conditional_rest_is_the_kl_of_whole_responses(a: int, b: int) -> None:
    (p1, p2), (q1, q2) = chain(a), chain(b)
    said = list(product(range(VOCAB), repeat=2))
    joint = {y: (float(p1[y[0]] + p2[y]), float(q1[y[0]] + q2[y])) for y in said}
    inside = {kind: [joint[y] for y in said if (y[0] in REFUSE) == kind] for kind in (True, False)}
    mass = {kind: tuple(math.log(sum(math.exp(v[k]) for v in rows)) for k in (0, 1)) for kind, rows in inside.items()}
    refusing = kl(mass.values())
    rest = sum(math.exp(mass[k][0]) * kl([(p - mass[k][0], q - mass[k][1]) for p, q in rows]) for k, rows in inside.items())
    assert refusing + rest == pytest.approx(kl(joint.values()), abs=1e-12)
    assert float(kl_of_refusing(p1[None], q1[None], REFUSE)) == pytest.approx(refusing, abs=1e-12)
    # Teacher-forced along every response, weighted by how likely the base says it, the answer part is that conditional rest.
    weights, answering = [], []
    for y in said:
        base, model = (TokenLogprobs(torch.stack([first, second[y[0]]]), (0, 2)) for first, second in ((p1, p2), (q1, q2)))
        found = compare(base, model, refusal_tokens=REFUSE).answering()
        assert found is not None
        weights.append(math.exp(joint[y][0]))
        answering.append(float(found[0]))
    assert sum(w * x for w, x in zip(weights, answering, strict=True)) == pytest.approx(rest, abs=1e-12)


@given(SEEDS, SEEDS)
def test_it_is_between_nothing_and_the_kl_of_the_first_token(a: int, b: int) -> None:
    p, q = chain(a, scale=20)[0][None], chain(b, scale=20)[0][None]
    assert 0 <= float(kl_of_refusing(p, q, REFUSE)) <= float(kl_rows(p, q)) + 1e-12


def test_a_change_among_refusals_or_among_answers_is_none_of_refusing_and_a_change_between_them_all_of_it() -> None:
    p = torch.tensor([[0.1, 0.3, 0.4, 0.2]]).log()
    among = torch.tensor([[0.4, 0.2, 0.1, 0.3]]).log()
    between = torch.tensor([[0.15, 0.15, 0.6, 0.1]]).log()
    assert float(kl_of_refusing(p, among, REFUSE)) == pytest.approx(0, abs=1e-7)
    assert float(kl_rows(p, among)) > 0.3
    assert float(kl_of_refusing(p, between, REFUSE)) == pytest.approx(float(kl_rows(p, between)), abs=1e-7)


def test_masked_tokens_give_zero_or_infinity_and_never_nan() -> None:
    never = torch.tensor([[0.5, 0.0, 0.5, 0.0]]).log()
    always = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).log()
    assert kl_of_refusing(never, never, REFUSE).tolist() == [0.0]
    assert kl_of_refusing(always, never, REFUSE).tolist() == [math.inf]


def test_tokens_that_do_not_fit_are_refused() -> None:
    row = torch.zeros(1, VOCAB)
    for wrong in ((), (4,), (-1,)):
        with pytest.raises(UserError, match="do not fit a vocabulary of 4"):
            kl_of_refusing(row, row, wrong)
