import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from resect.edit.bake import bake
from resect.edit.plan import make_plan
from resect.errors import UserError
from resect.models.decompose import TOLERANCE, added
from resect.models.forward import first_tensor, recorded_calls
from resect.models.live import Live
from resect.models.load import wrap
from resect.models.trace import trace_block
from resect.models.writers import decomposed, find_writers

MOE = {"mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "qwen3_5_moe"}
POST_NORM = {"gemma2", "gemma3", "gemma3_vl", "olmo2"}


def test_every_block_has_one_attention_and_one_mlp_writer_proven_complete(tiny, family):
    model = tiny(family)
    writers = find_writers(model)
    assert [(w.layer, w.kind) for w in writers] == [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")]
    assert all(w.error < TOLERANCE / 100 for w in writers)
    assert all(w.coefficient == pytest.approx(0.22 if family == "granite" else 1.0, abs=1e-5) for w in writers)
    assert all((w.gain is not None) == (family in POST_NORM) for w in writers)
    assert all(w.module.startswith(model.block_names[w.layer]) for w in writers)
    experts = {p.layout for w in writers for p in w.parameters if p.layout.startswith("expert")}
    assert experts == ({"expert_in_out" if family == "gpt_oss" else "expert_out_in"} if family in MOE else set())


def test_names_and_layouts_where_they_are_known(tiny):
    found = {name: [[(p.name.split(".", 3)[-1], p.layout) for p in w.parameters] for w in find_writers(tiny(name))[:2]] for name in TABLE}
    assert found == TABLE


TABLE = {
    "gpt2": [
        [("attn.c_proj.weight", "in_out"), ("attn.c_proj.bias", "bias")],
        [("mlp.c_proj.weight", "in_out"), ("mlp.c_proj.bias", "bias")],
    ],
    "qwen3_5": [[("linear_attn.out_proj.weight", "out_in")], [("mlp.down_proj.weight", "out_in")]],
    "qwen2_moe": [
        [("self_attn.o_proj.weight", "out_in")],
        [("mlp.experts.down_proj", "expert_out_in"), ("mlp.shared_expert.down_proj.weight", "out_in")],
    ],
    "gpt_oss": [
        [("self_attn.o_proj.weight", "out_in"), ("self_attn.o_proj.bias", "bias")],
        [("mlp.experts.down_proj", "expert_in_out"), ("mlp.experts.down_proj_bias", "in_out")],
    ],
    "bloom": [
        [("self_attention.dense.weight", "out_in"), ("self_attention.dense.bias", "bias")],
        [("mlp.dense_4h_to_h.weight", "out_in"), ("mlp.dense_4h_to_h.bias", "bias")],
    ],
}


@pytest.mark.parametrize(("name", "offset"), [("gemma2", 1.0), ("gemma3", 1.0), ("olmo2", 0.0)])
def test_gain_is_the_norms_own(tiny, name, offset):
    model = tiny(name)
    attention, mlp = find_writers(model)[:2]
    block = model.blocks[0]
    assert torch.equal(attention.gain, offset + block.post_attention_layernorm.weight)
    assert torch.equal(mlp.gain, offset + block.post_feedforward_layernorm.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gemma3", "qwen3_5_moe"])
def test_half_precision_is_proven_in_float32_and_left_alone(tiny, name, dtype):
    model = tiny(name)
    wanted = [(w.name, w.kind, w.parameters) for w in find_writers(model)]
    model.network.to(dtype)
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    writers = find_writers(model)
    assert [(w.name, w.kind, w.parameters) for w in writers] == wanted
    assert all(w.error < TOLERANCE / 100 for w in writers)
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_half_precision_weights_are_not_widened(tiny):
    config = LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=4)
    model = wrap(LlamaForCausalLM._from_config(config, dtype=torch.bfloat16), tiny("llama").tokenizer, name="wide")
    with Live() as live:
        assert len(find_writers(model)) == 4
    assert live.peak < sum(p.nbytes for p in model.blocks[0].parameters())


def test_a_block_that_takes_float32_throughout_gets_it(tiny):
    model = tiny("llama")
    model.network.to(torch.bfloat16)
    mlp = model.blocks[1].mlp
    mlp.forward = lambda x: torch.tanh(x @ mlp.up_proj.weight.T) @ mlp.down_proj.weight.T
    writers = find_writers(model)
    assert [p.name for p in writers[3].parameters] == ["model.layers.1.mlp.down_proj.weight"]
    assert all(w.error < TOLERANCE / 100 for w in writers)
    assert [("forward" in vars(m)) for m in (mlp, *model.blocks)] == [True, False, False]


def code_of_its_own(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight).tanh()


def hook_of_its_own(layer):
    layer.register_forward_hook(lambda _module, _args, output: output.tanh())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [code_of_its_own, hook_of_its_own])
def test_a_linear_layer_with_more_to_it_is_not_taken_for_linear(tiny, change, dtype):
    model = tiny("llama")
    change(model.blocks[1].mlp.down_proj)
    model.network.to(dtype)
    with pytest.raises(UserError, match=r"Module model\.layers\.1\.mlp.* writes to the residual stream, but no set"):
        find_writers(model)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_a_block_that_does_not_add_up_is_refused_by_name(tiny, size):
    model = tiny("llama")
    block = model.blocks[1]
    inner = block.forward
    block.forward = lambda hidden_states, **kwargs: inner(hidden_states, **kwargs) + size * torch.tanh(hidden_states.flip(-1))
    with pytest.raises(
        UserError, match=r"Block model\.layers\.1 \(LlamaDecoderLayer\) adds something .* relative gap [\d.]+e-0\d, allowed 1e-04"
    ):
        find_writers(model)


def token_gate(x):
    return torch.sigmoid(x[..., :1] - x[..., 1:2])


def gated_forward(block, gate):
    """Return a forward pass in which every token weighs the stream and what is written to it anew."""

    def forward(hidden_states, **kwargs):
        attention = first_tensor(block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs))
        middle = gate(hidden_states) * hidden_states + gate(-hidden_states) * attention
        return middle * 0.7 + gate(middle) * block.mlp(block.post_attention_layernorm(middle))

    return forward


def adds_along(model, direction):
    """What the blocks add along a direction, by their own decomposition."""
    found = []
    ids = torch.arange(20, 60).view(2, 20)
    with recorded_calls(dict(zip(model.block_names, model.blocks, strict=True))) as record, torch.no_grad():
        model.network(input_ids=ids, use_cache=False)
    for name, block in zip(model.block_names, model.blocks, strict=True):
        trace = trace_block(block, record[name][0][0], name=name, d_model=model.d_model)
        found.append(added(trace, decomposed(trace, layer=0)[0]) @ direction.double())
    return torch.cat([f.flatten() for f in found])


def assert_edit_removes_what_is_added(model, writers):
    direction = torch.nn.functional.normalize(torch.randn(model.d_model), dim=0)
    before = adds_along(model, direction)
    bake(model, writers, make_plan(writers, direction.expand(len(model.blocks), 1, -1), torch.ones(len(model.blocks))))
    assert adds_along(model, direction).norm() < 1e-5 * before.norm()


def test_blocks_that_weigh_each_token_anew(tiny):
    model = tiny("llama")
    for block in model.blocks:
        block.forward = gated_forward(block, token_gate)
    writers = find_writers(model)
    assert [(w.layer, w.kind, w.mixed) for w in writers] == [(i, k, True) for i in (0, 1) for k in ("attention", "mlp")]
    assert all(w.error < TOLERANCE / 10 for w in writers)
    assert_edit_removes_what_is_added(model, writers)


def test_blocks_that_weigh_each_feature_anew_are_refused(tiny):
    model = tiny("llama")
    model.blocks[0].forward = gated_forward(model.blocks[0], torch.sigmoid)
    with pytest.raises(UserError, match=r"Block model\.layers\.0 \(LlamaDecoderLayer\) adds something"):
        find_writers(model)


@pytest.mark.parametrize(("name", "per_layer"), [("gemma3n", 4), ("deepseek_v4", 2), ("qwen4_exp", 2)])
def test_several_residual_streams(tiny, name, per_layer):
    model = tiny(name)
    writers = find_writers(model)
    assert [w.layer for w in writers] == [layer for layer in range(len(model.blocks)) for _ in range(per_layer)]
    assert all(w.mixed and w.error < TOLERANCE / 10 for w in writers)
    assert all((w.gain is not None) == (name == "gemma3n") for w in writers)
    assert_edit_removes_what_is_added(model, writers)


class Squared(nn.Module):
    """A module with a weight but an output that is not linear in it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) * 0.1)

    def forward(self, x):
        return (x @ self.weight).square()


def test_an_output_without_editable_parameters_is_refused_by_name(tiny):
    model = tiny("llama")
    model.blocks[0].mlp = Squared()
    with pytest.raises(UserError, match=r"Module model\.layers\.0\.mlp \(Squared\) writes to the residual stream, but no set"):
        find_writers(model)


def test_a_post_norm_that_centres_is_refused(tiny):
    model = tiny("olmo2")
    model.blocks[0].post_feedforward_layernorm = nn.LayerNorm(32)
    with pytest.raises(UserError, match=r"model\.layers\.0\.post_feedforward_layernorm \(LayerNorm\)"):
        find_writers(model)


class Experts(nn.Module):
    """Experts kept as a list, with one that every token uses."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)) for _ in range(3))
        self.shared = nn.Linear(32, 32)

    def forward(self, x):
        rows = x.reshape(-1, 32)
        weights = self.gate(rows).softmax(-1)
        out = self.shared(rows.tanh())
        for i, expert in enumerate(self.experts):
            at = weights.argmax(-1) == i
            out = out.index_put((at.nonzero()[:, 0],), weights[at, i, None] * expert(rows[at]), accumulate=True)
        return out.view(x.shape), weights


def test_experts_in_a_list_with_a_shared_one_and_biases(tiny):
    model = tiny("llama")
    torch.manual_seed(1)
    block = model.blocks[0]
    block.mlp = Experts()
    inner = block.mlp.forward
    block.mlp.forward = lambda x: inner(x)[0]
    mlp = find_writers(model)[1]
    names = [f"experts.{i}.2.{part}" for i in range(3) for part in ("weight", "bias")] + ["shared.weight", "shared.bias"]
    assert sorted(p.name for p in mlp.parameters) == sorted(f"model.layers.0.mlp.{n}" for n in names)
    assert {p.layout for p in mlp.parameters} == {"out_in", "bias"}


class NormedSum(nn.Module):
    """Two parts, one of them behind a norm of its own, and a norm over their sum, which no module puts out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.inner, self.outer = nn.RMSNorm(32), nn.RMSNorm(32)
        with torch.no_grad():
            self.inner.weight.copy_(torch.linspace(0.5, 1.5, 32))
            self.outer.weight.copy_(torch.linspace(1.2, 0.3, 32))

    def forward(self, x):
        return self.outer(self.first(x.tanh()) + self.inner(self.second(x.sin())))


def test_a_norm_over_a_sum_gives_each_part_its_gains(tiny):
    model = tiny("llama")
    torch.manual_seed(2)
    for block in model.blocks:
        block.mlp = NormedSum()
    writers = find_writers(model)
    assert [w.module.rpartition(".")[2] for w in writers] == ["o_proj", "first", "second"] * 2
    mlp = model.blocks[0].mlp
    assert torch.allclose(writers[1].gain, mlp.outer.weight)
    assert torch.allclose(writers[2].gain, mlp.outer.weight * mlp.inner.weight)
    assert_edit_removes_what_is_added(model, writers)


def test_quantised_and_absent_weights_are_refused(tiny):
    model = tiny("llama")
    model.blocks[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(40, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is quantised \(torch\.int8\)"):
        find_writers(model)
    model = tiny("llama")
    model.blocks[0].to("meta")
    with pytest.raises(UserError, match="has no data"):
        find_writers(model)


def test_a_block_that_runs_twice_is_refused(tiny):
    model = tiny("llama")
    model.network.model.layers[1] = model.network.model.layers[0]
    model.__dict__.pop("blocks", None)
    with pytest.raises(UserError, match=r"Block model\.layers\.\d runs 2 times"):
        find_writers(model)
