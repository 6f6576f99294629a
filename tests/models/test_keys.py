"""Names on disk and in the network: what transformers makes of stored tensors is what is made here, and axes are followed back."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, Transpose, WeightConverter

from resect.errors import UserError
from resect.layout import OUTPUT_AXIS
from resect.models.keys import Origin, origins, stored_layout


def test_every_parameter_is_made_as_transformers_makes_it(tiny, tmp_path, family):
    model = tiny(family)
    model.network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    state = model.network.state_dict()
    found = origins(model.network, stored)
    for name, origin in found.items():
        assert torch.equal(origin.make(name, model.network, stored.__getitem__), state[name]), name
    # All but tied heads, which are stored once.
    assert set(state) - set(found) <= {"lm_head.weight"}
    assert {key for origin in found.values() for key in origin.keys} == set(stored)


def test_experts_are_taken_in_the_order_of_their_numbers(tiny, tmp_path):
    model = tiny("mixtral")
    model.network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(dict(reversed(stored.items())), tmp_path / "model.safetensors")
    found = origins(model.network, reversed(stored))["model.layers.0.mlp.experts.down_proj"]
    assert len(found.keys) == 4
    assert list(found.keys) == sorted(found.keys)


def rule(*operations):
    return WeightConverter(
        source_patterns="x.*.w" if isinstance(operations[0], MergeModulelist) else "x.w", target_patterns="y", operations=[*operations]
    )


CASES = {
    "renamed": (None, "out_in", (6, 4), {"a": (6, 4)}, "out_in"),
    "stacked": (rule(MergeModulelist(0)), "expert_out_in", (2, 6, 4), {"a": (6, 4), "b": (6, 4)}, "out_in"),
    "stacked and turned": (rule(MergeModulelist(0), Transpose(1, 2)), "expert_in_out", (2, 4, 6), {"a": (6, 4), "b": (6, 4)}, "out_in"),
    "turned": (rule(Transpose(0, 1)), "out_in", (6, 4), {"a": (4, 6)}, "in_out"),
    "turned only if need be": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 4, 6), {"a": (2, 6, 4)}, "expert_out_in"),
    "not turned": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 4, 6), {"a": (2, 4, 6)}, "expert_in_out"),
    "square, not turned": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 6, 6), {"a": (2, 6, 6)}, "expert_in_out"),
    "joined along the inputs": (rule(Concatenate(1)), "out_in", (6, 8), {"a": (6, 4), "b": (6, 4)}, "out_in"),
    "joined along the outputs": (rule(Concatenate(0)), "out_in", (6, 4), {"a": (3, 4), "b": (3, 4)}, None),
    "cut": (rule(Chunk(0)), "out_in", (6, 4), {"a": (12, 4)}, None),
    "of another width": (None, "out_in", (6, 4), {"a": (5, 4)}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_axis_of_the_outputs_is_followed_back(name):
    found, layout, shape, stored, wanted = CASES[name]
    origin = Origin(found, "y", tuple(("x", key) for key in stored))
    if wanted is None:
        with pytest.raises(UserError, match="Parameter y "):
            stored_layout(origin, layout, name="y", shape=shape, stored=stored)
        return
    got = stored_layout(origin, layout, name="y", shape=shape, stored=stored)
    assert got == wanted
    assert all(s[OUTPUT_AXIS[got]] == shape[OUTPUT_AXIS[layout]] for s in stored.values())
