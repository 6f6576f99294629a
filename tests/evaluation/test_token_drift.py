import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from resect.errors import UserError
from resect.evaluation import token_drift
from resect.evaluation.drift import by_position, kl_rows, kl_tokens
from resect.evaluation.logprobs import TokenLogprobs, response_logprobs
from resect.evaluation.token_drift import TokenDrift, compare, drift_along, entropy
from resect.generation import Response
from resect.models.chat import render
from resect.prompts import Prompt

OFFSETS = (0, 3, 4, 9)
REFUSE = (2, 5)


def logprobs(seed, offsets=OFFSETS, vocab=11):
    generator = torch.Generator().manual_seed(seed)
    return TokenLogprobs((2 * torch.randn(offsets[-1], vocab, generator=generator)).log_softmax(1), offsets)


def of(everything, rows):
    counts = torch.tensor([0, *(everything.counts[i] for i in rows)]).cumsum(0).tolist()
    return TokenLogprobs(torch.cat([everything.of(i) for i in rows]), tuple(counts))


def test_every_number_is_that_of_its_own_formula():
    base, model = logprobs(0), logprobs(1)
    found = compare(base, model, refusal_tokens=REFUSE)
    assert found.kl.equal(kl_rows(base.rows, model.rows))
    assert found.reverse.equal(kl_rows(model.rows, base.rows))
    assert found.per_response(found.kl).tolist() == pytest.approx(kl_tokens(base, model).tolist())
    expected = scipy_entropy(model.rows.double().exp().numpy(), axis=1) - scipy_entropy(base.rows.double().exp().numpy(), axis=1)
    assert found.entropy_shift.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.first(found.kl).equal(found.kl[[0, 3, 4]])
    assert found.flipped.tolist() == [int(a) != int(b) for a, b in zip(base.rows.argmax(1), model.rows.argmax(1), strict=True)]
    assert [q.n for q in by_position(found.kl, found.offsets)] == [3, 2, 2, 1, 1]


def test_a_model_against_itself_has_not_moved():
    base = logprobs(0)
    found = compare(base, base, refusal_tokens=REFUSE)
    assert not found.kl.any()
    assert not found.reverse.any()
    assert not found.flipped.any()
    assert not found.entropy_shift.any()
    assert found.answering().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("most", [1, 40, 1 << 24])
def test_a_few_prompts_at_a_time_give_the_same_numbers_and_hold_no_more_than_allowed(most, monkeypatch):
    base, model, read = logprobs(0), logprobs(1), []
    monkeypatch.setattr(token_drift, "_MOST", most)
    whole = compare(base, model, refusal_tokens=REFUSE)

    def reader(everything):
        return lambda rows: read.append(of(everything, rows).rows.numel()) or of(everything, rows)

    parts = drift_along(reader(base), reader(model), base.counts, vocab=11, refusal_tokens=REFUSE)
    assert parts.to_json() == whole.to_json()
    assert max(read) <= max(most, 11 * max(base.counts))
    assert len(read) == {1: 6, 40: 6}.get(most, 2)


def test_along_a_real_model_padding_changes_nothing(make_model):
    base, model = make_model(seed=0), make_model(seed=1)
    prompts = [Prompt(" ".join(["w7"] * n)) for n in (1, 4, 2)]
    said = [Response(tuple(range(10, 10 + n)), "", finished=True) for n in (5, 1, 3)]
    rendered = render(base.tokenizer, prompts)

    def reader(which):
        return lambda rows: response_logprobs(which, [rendered[i] for i in rows], [said[i] for i in rows], k=4)

    found = drift_along(reader(base), reader(model), [4, 1, 3], vocab=60)
    alone = drift_along(reader(base), reader(model), [4], vocab=60)
    assert found.kl[:4].tolist() == pytest.approx(alone.kl.tolist(), rel=1e-4)
    assert found.refusing is None
    assert found.answering() is None
    assert bool((found.kl > 0).all())


def test_masked_vocabularies_give_no_nan_and_survive_the_way_through_json():
    base, model = logprobs(0), logprobs(1)
    base.rows[:, :3], model.rows[:, :3] = -math.inf, -math.inf
    both = compare(base, model, refusal_tokens=REFUSE)
    assert bool(both.kl.isfinite().all() and both.reverse.isfinite().all() and both.entropy_shift.isfinite().all())
    model.rows[0, 4] = -math.inf
    found = TokenDrift.from_json(compare(base, model, refusal_tokens=REFUSE).to_json())
    assert found.kl.isinf().tolist() == [True] + [False] * 8
    assert bool(found.reverse.isfinite().all())
    assert found.kl[1:].tolist() == both.kl[1:].tolist()
    assert not bool(found.answering().isnan().any())


def test_bad_input_is_named():
    with pytest.raises(UserError, match="different responses"):
        compare(logprobs(0), logprobs(0, (0, 2, 4, 9)))
    with pytest.raises(UserError, match="at least one response"):
        drift_along(lambda _: logprobs(0), lambda _: logprobs(0), [], vocab=11)
    assert entropy(torch.zeros(0, 5)).tolist() == []
