"""Block updates equal the differences of the captured stream."""

import pytest
import torch

from resect.activations import capture
from resect.errors import UserError
from resect.models.chat import Rendered
from resect.updates import capture_updates

PROMPTS = [Rendered(tuple(range(10, 10 + n))) for n in (5, 9, 3)]
TOKENS = sum(len(r.ids) - 1 for r in PROMPTS)


@pytest.fixture
def model(tiny):
    return tiny("qwen3")


def test_updates_are_differences_of_the_stream(model) -> None:
    found = capture_updates(model, PROMPTS, tokens=1000, seed=0)
    assert found.shape == (TOKENS, 2, 32)
    row = 0
    for prompt in PROMPTS:
        for token in range(1, len(prompt.ids)):
            prefix = [Rendered(prompt.ids[: token + 1])]
            stream = capture(model, prefix).rows[0]
            torch.testing.assert_close(found[row, 1], stream[1] - stream[0], rtol=1e-4, atol=1e-5)
            row += 1


def test_a_sample_is_part_of_the_whole_and_batch_free(model) -> None:
    whole = capture_updates(model, PROMPTS, tokens=1000, seed=0)
    some = capture_updates(model, PROMPTS, tokens=4, seed=3, batch_tokens=1)
    again = capture_updates(model, PROMPTS, tokens=4, seed=3)
    torch.testing.assert_close(some, again, rtol=1e-4, atol=1e-5)
    nearest = [(whole - row).flatten(1).norm(dim=1).min().item() for row in some]
    assert max(nearest) < 1e-4
    assert not torch.allclose(some, capture_updates(model, PROMPTS, tokens=4, seed=4))


def test_prompts_of_one_token_have_no_updates(model) -> None:
    with pytest.raises(UserError, match="more than one token"):
        capture_updates(model, [Rendered((5,))], tokens=4, seed=0)
