import pytest
import torch

from resect.errors import UserError
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.recovery import agreement, kl_to_twin
from resect.generation import Response


def rows(*ids):
    return [Response(i, "", finished=True) for i in ids]


def test_agreement_is_exact_and_the_end_token_counts():
    edited, twin = rows((5, 6, 1), (5, 6), (5, 7, 1), ()), rows((5, 6, 1), (5, 6, 1), (5, 6, 1), ())
    assert agreement(edited, twin) == (True, False, False, True)


def test_kl_to_the_twin_is_zero_at_the_twin_and_grows_away_from_it():
    twin = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    away = [(twin + step * torch.randn(6, 9, generator=torch.Generator().manual_seed(1))).log_softmax(1) for step in (0.0, 0.1, 1.0)]
    kls = [float(kl_to_twin(TokenLogprobs(twin, (0, 2, 6)), TokenLogprobs(a, (0, 2, 6))).mean()) for a in away]
    assert kls[0] == pytest.approx(0, abs=1e-12)
    assert kls[0] < kls[1] < kls[2]


def test_different_prompts_are_refused():
    with pytest.raises(UserError, match="1 responses and 2 of the twin"):
        agreement(rows((5,)), rows((5,), (6,)))
