import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.errors import UserError
from resect.models.batches import batches
from resect.models.chat import Rendered

LENGTHS = st.lists(st.integers(1, 30), max_size=25)


def prompts(lengths):
    return [Rendered(tuple(range(100 * i + 1, 100 * i + 1 + n)), 0) for i, n in enumerate(lengths)]


@given(LENGTHS, st.integers(1, 120), st.sampled_from(["left", "right"]))
def test_every_prompt_once_whole_and_within_budget(lengths, budget, side):
    rendered = prompts(lengths)
    seen = []
    for batch in batches(rendered, batch_tokens=budget, pad_id=7, side=side):
        seen += batch.rows
        assert batch.input_ids.numel() <= budget or len(batch.rows) == 1
        for k, row in enumerate(batch.rows):
            ids = torch.tensor(rendered[row].ids)
            start, n = int(batch.starts[k]), len(ids)
            assert torch.equal(batch.input_ids[k, start : start + n], ids)
            assert torch.equal(batch.input_ids[k][batch.attention_mask[k] == 1], ids)
            assert torch.equal(batch.position_ids[k, start : start + n], torch.arange(n))
            assert (batch.input_ids[k][batch.attention_mask[k] == 0] == 7).all()
            assert (batch.position_ids[k][batch.attention_mask[k] == 0] == 0).all()
            assert int(batch.lengths[k]) == n
    assert sorted(seen) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 120), st.integers(0, 40))
def test_padding_is_bounded_and_no_batch_is_cut_for_nothing(lengths, budget, limit):
    found = list(batches(prompts(lengths), batch_tokens=budget, max_padding=limit))
    assert sorted(row for batch in found for row in batch.rows) == list(range(len(lengths)))
    paddings = [int((batch.attention_mask == 0).sum()) for batch in found]
    assert all(padding <= limit for padding in paddings)
    for batch, padding, after in zip(found, paddings, found[1:], strict=False):
        width = batch.input_ids.shape[1]
        assert width * (len(batch.rows) + 1) > budget or padding + width - int(after.lengths[0]) > limit


@given(LENGTHS)
def test_longest_first_and_stable(lengths):
    rendered = prompts(lengths)
    rows = [row for batch in batches(rendered, batch_tokens=64) for row in batch.rows]
    assert rows == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def test_sides_differ_only_in_where_padding_stands():
    left, right = (next(batches(prompts([2, 4]), side=side)) for side in ("left", "right"))
    assert left.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert right.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert left.starts.tolist() == [0, 2]
    assert right.starts.tolist() == [0, 0]


def test_to_moves_every_tensor():
    moved = next(batches(prompts([3]))).to("meta")
    assert {t.device.type for t in (moved.input_ids, moved.attention_mask, moved.position_ids, moved.lengths)} == {"meta"}


def test_bad_input_is_refused_at_the_call():
    with pytest.raises(UserError, match=r"at least 1, got 0"):
        batches(prompts([1]), batch_tokens=0)
    with pytest.raises(UserError, match=r"Prompt 1 has no tokens"):
        batches([Rendered((1,), 0), Rendered((), None)])
