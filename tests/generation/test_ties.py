import torch

from resect.generation import respond
from resect.generation.ties import partings
from resect.models.chat import Rendered

PROMPTS = (Rendered(tuple(range(10, 15)), 4), Rendered(tuple(range(20, 29)), 8))


def test_equal_responses_do_not_part(tiny):
    model = tiny("qwen3")
    ids = [r.ids for r in respond(model, PROMPTS, max_new_tokens=6)]
    assert partings(model, PROMPTS, ids, ids) == ()


def test_a_wrong_token_is_no_tie_and_a_tied_one_is(tiny):
    model = tiny("qwen3")
    first, second = (r.ids for r in respond(model, PROMPTS, max_new_tokens=6))
    right = second[3]
    wrong = (*second[:3], (right + 1) % 260, *second[4:])
    (found,) = partings(model, PROMPTS, [first, second], [first, wrong])
    assert (found.prompt, found.position, found.tokens) == (1, 3, (right, (right + 1) % 260))
    assert found.logits[0] == found.logits[0]
    assert found.gap > found.limit
    assert not found.tie
    with torch.no_grad():
        rows = model.network.get_output_embeddings().weight
        rows[(right + 1) % 260] = rows[right]
    (found,) = partings(model, PROMPTS, [first, second], [first, wrong])
    assert found.tie


def test_a_response_that_is_cut_off_is_no_tie(tiny):
    model = tiny("qwen3")
    first, second = (r.ids for r in respond(model, PROMPTS, max_new_tokens=6))
    (found,) = partings(model, PROMPTS, [first, second], [first[:-1], second])
    assert (found.prompt, found.position, found.tie) == (0, len(first) - 1, False)
