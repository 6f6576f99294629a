"""Names on disk and in the network: what transformers makes of stored tensors is what is made here, and axes are followed back."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Chunk, Concatenate, ConversionOps, MergeModulelist, Transpose, WeightConverter

from resect.errors import UserError
from resect.layout import OUTPUT_AXIS
from resect.models.keys import Origin, origins, stored_parts, unmade


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


def rule(*operations, source="x.w", target="y"):
    return WeightConverter(source_patterns=source, target_patterns=target, operations=[*operations])


STACK, PAIR = {"source": "x.*.w"}, {"source": ["x.a", "x.b"]}
CASES = {
    "renamed": (None, "out_in", (6, 4), {"a": (6, 4)}, "out_in"),
    "stacked": (rule(MergeModulelist(0), **STACK), "expert_out_in", (2, 6, 4), {"a": (6, 4), "b": (6, 4)}, "out_in"),
    "stacked and turned": (
        rule(MergeModulelist(0), Transpose(1, 2), **STACK),
        "expert_in_out",
        (2, 4, 6),
        {"a": (6, 4), "b": (6, 4)},
        "out_in",
    ),
    "turned": (rule(Transpose(0, 1)), "out_in", (6, 4), {"a": (4, 6)}, "in_out"),
    "turned, and square": (rule(Transpose(0, 1)), "out_in", (6, 6), {"a": (6, 6)}, "in_out"),
    "turned only if need be": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 4, 6), {"a": (2, 6, 4)}, "expert_out_in"),
    "not turned": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 4, 6), {"a": (2, 4, 6)}, "expert_in_out"),
    "square, not turned": (rule(Transpose(1, 2, check_dims=True)), "expert_in_out", (2, 6, 6), {"a": (2, 6, 6)}, "expert_in_out"),
    "joined along the inputs": (rule(Concatenate(1), **PAIR), "out_in", (6, 8), {"a": (6, 4), "b": (6, 4)}, "out_in"),
    "joined along the outputs": (rule(Concatenate(0), **PAIR), "out_in", (6, 4), {"a": (3, 4), "b": (3, 4)}, None),
    "outputs alike, joined": (rule(Concatenate(0), **PAIR), "in_out", (8, 6), {"a": (4, 6), "b": (4, 6)}, "in_out"),
    "cut along the outputs": (rule(Chunk(0), target=["y", "z"]), "out_in", (6, 4), {"a": (12, 4)}, None),
    "cut along the inputs": (rule(Chunk(1), target=["y", "z"]), "out_in", (6, 4), {"a": (6, 8)}, None),
    "of another width": (None, "out_in", (6, 4), {"a": (5, 4)}, None),
}


def origin_of(found, stored):
    patterns = ["x"] * len(stored) if found is None else found.source_patterns
    return Origin(found, "y", tuple(zip(patterns if len(patterns) == len(stored) else patterns * len(stored), stored, strict=True)))


@pytest.mark.parametrize("name", CASES)
def test_the_axis_of_the_outputs_is_followed_back(name):
    found, layout, shape, stored, wanted = CASES[name]
    origin = origin_of(found, stored)
    if wanted is None:
        with pytest.raises(UserError, match="Parameter y "):
            stored_parts(origin, layout, name="y", shape=shape, stored=stored, config=None)
        return
    got, keys = stored_parts(origin, layout, name="y", shape=shape, stored=stored, config=None)
    assert (got, keys) == (wanted, tuple(stored))
    assert all(s[OUTPUT_AXIS[got]] == shape[OUTPUT_AXIS[layout]] for s in stored.values())


class Halves(ConversionOps):
    """Stack the first half of a list into one parameter and the second half into another."""

    def convert(self, input_dict, source_patterns, target_patterns, **_):
        parts = input_dict[source_patterns[0]]
        cut = len(parts) // 2
        return {target_patterns[0]: torch.stack(parts[:cut]), target_patterns[1]: torch.stack(parts[cut:])}


@pytest.mark.parametrize(("name", "wanted"), [("y", ("a", "b")), ("z", ("c", "d"))])
def test_of_tensors_that_one_rule_deals_out_each_parameter_has_its_own(name, wanted):
    stored = dict.fromkeys("abcd", (6, 4))
    origin = origin_of(rule(Halves(), source="x.*.w", target=["y", "z"]), stored)
    got = stored_parts(origin, "expert_out_in", name=name, shape=(2, 6, 4), stored=stored, config=None)
    assert got == ("out_in", wanted)


def test_what_no_tensor_is_read_into_is_named(tiny):
    network = tiny("gemma3").network
    keys = [name for name in network.state_dict() if name != "lm_head.weight"]
    assert unmade(network, keys) == []
    assert unmade(network, keys[1:]) == [keys[0], "lm_head.weight"]
