"""A cache of fixed length against the growing one: the same logits at every step, at the same addresses."""

import pytest
import torch
from torch.nn.functional import pad

from resect.generation.fixed import Fixed, can_be_fixed
from resect.models.forward import cache_argument

IDS = torch.randint(6, 260, (3, 30), generator=torch.Generator().manual_seed(5))
MASK = torch.ones(3, 7, dtype=torch.bool)
MASK[0, :4] = MASK[2, :1] = False
FIXED = ("qwen3", "llama", "mistral3", "gemma2", "gemma3", "phi", "gpt2", "gpt_neox", "granite", "qwen3_moe", "gpt_oss", "qwen3_vl")
FIXED += ("gemma3n", "deepseek_v3")
KINDS = [(name, attention) for name in ("llama", "gemma3", "qwen3_vl") for attention in ("sdpa", "eager")]
KINDS += [("gpt_oss", "eager"), ("gemma2", "eager"), ("gemma3n", "sdpa"), ("deepseek_v3", "sdpa")]
GROWING = ("qwen3_5", "qwen3_5_moe", "bloom", "deepseek_v4", "qwen4_exp")


def fed(model, past, mask, columns):
    known = {} if past is None else {cache_argument(model.network): past}
    positions = (pad(MASK, (0, 23), value=True).cumsum(1) - 1).clamp(min=0)[:, columns]
    with torch.no_grad():
        return model.network(input_ids=IDS[:, columns], position_ids=positions, attention_mask=mask, use_cache=True, **known)


def prefill(model):
    return fed(model, None, MASK.long(), slice(0, 7))[cache_argument(model.network)]


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_every_step_has_the_logits_of_a_growing_cache_in_memory_that_stays(tiny, name, attention):
    """20 steps, past the windows of 8 that some networks have."""
    model = tiny(name)
    model.network.set_attn_implementation(attention)
    growing, past = prefill(model), prefill(model)
    fixed, places = Fixed(model.network, past, MASK, room=23), set()
    windows = {getattr(layer, "sliding_window", None) for layer in growing.layers} - {None}
    assert (windows == {8}) == (name in ("gemma3", "gpt_oss", "gemma2", "gemma3n"))
    for i in range(7, 27):
        expected = fed(model, growing, pad(MASK, (0, i - 6), value=True).long(), slice(i, i + 1)).logits
        found = fed(model, past, fixed.masks(), slice(i, i + 1)).logits
        fixed.column += 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        places.add(tuple(t.data_ptr() for layer in past.layers for t in (layer.keys, layer.values, layer.column)))
    assert len(places) == 1
    assert [layer.keys.shape[2] for layer in past.layers] == [30] * len(past.layers)
    assert int(past.get_seq_length()) == growing.get_seq_length() == 27


@pytest.mark.parametrize("name", [*FIXED, *GROWING])
def test_what_can_be_fixed_is_found_by_structure_and_trial(tiny, name):
    model = tiny(name)
    ids = IDS[:, :7]
    with torch.no_grad():
        past = model.network(input_ids=ids, use_cache=True)[cache_argument(model.network)]
    assert can_be_fixed(model, past) == (name in FIXED)


def test_a_network_that_does_not_heed_the_masks_is_found_out_and_tried_again(tiny):
    model = tiny("llama")
    past = prefill(model)

    def deaf(_module, args, kwargs):
        finished = isinstance(kwargs.get("attention_mask"), torch.Tensor) and kwargs["attention_mask"].ndim == 4
        return args, kwargs | ({"attention_mask": torch.ones_like(kwargs["attention_mask"])} if finished else {})

    hook = model.network.register_forward_pre_hook(deaf, with_kwargs=True)
    assert not can_be_fixed(model, past)
    hook.remove()
    assert can_be_fixed(model, past)


def test_rows_leave_a_fixed_cache_with_their_mask(tiny):
    model = tiny("gemma3")
    past = prefill(model)
    fixed, rows = Fixed(model.network, past, MASK, room=5), torch.tensor([2, 0])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in past.layers]
    past.reorder_cache(rows)
    fixed.keep(rows)
    assert torch.equal(fixed.mask, pad(MASK, (0, 5), value=True)[rows])
    for (keys, values), layer in zip(before, past.layers, strict=True):
        assert torch.equal(layer.keys, keys[rows])
        assert torch.equal(layer.values, values[rows])
