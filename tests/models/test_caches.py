import torch
from transformers import DynamicCache

from resect.models.caches import can_drop_rows, can_drop_tokens, drop_tokens
from resect.models.forward import cache_argument

IDS = torch.randint(6, 260, (3, 7), generator=torch.Generator().manual_seed(5))


def prefill(model):
    return model.network(input_ids=IDS, use_cache=True)[cache_argument(model.network)]


def test_tokens_can_be_dropped_only_where_every_layer_holds_them_all(tiny):
    able = {name: can_drop_tokens(prefill(tiny(name))) for name in ("qwen3", "qwen3_moe", "qwen3_vl", "gemma3", "gpt_oss", "qwen3_5")}
    assert able == {"qwen3": True, "qwen3_moe": True, "qwen3_vl": True, "gemma3": False, "gpt_oss": False, "qwen3_5": False}
    assert can_drop_rows(prefill(tiny("qwen3_5")))
    assert not can_drop_rows(object())
    assert not can_drop_tokens(DynamicCache())  # nothing is known of it yet


def test_kept_tokens_move_to_the_right_in_their_order(tiny):
    past = prefill(tiny("qwen3"))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in past.layers]
    kept = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]).bool()
    mask = drop_tokens(past, kept)
    assert mask.tolist() == [[True] * 5, [False, False, True, True, True], [False] * 4 + [True]]
    for (keys, values), layer in zip(before, past.layers, strict=True):
        for row in range(3):
            assert torch.equal(layer.keys[row][:, mask[row]], keys[row][:, kept[row]])
            assert torch.equal(layer.values[row][:, mask[row]], values[row][:, kept[row]])
    assert past.get_seq_length() == 5
