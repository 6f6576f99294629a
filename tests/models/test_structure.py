"""Writers taken over between blocks of one structure: those that every block's own proof finds, and never where a block differs."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from resect.edit.bake import bake
from resect.edit.plan import make_plan
from resect.edit.proof import observe, prove
from resect.errors import UserError
from resect.models import writers as module
from resect.models.forward import first_tensor, with_first_tensor
from resect.models.load import wrap
from resect.models.writers import find_writers

LAYERS = 4
ODD = 2  # the block that differs, where one does


@pytest.fixture
def deep(tiny):
    """A function: a tiny random model of four blocks; what its configuration lists for two blocks is listed twice."""

    def build(family, *, seed=0):
        model = tiny(family, seed=seed)
        config = deepcopy(model.network.config)
        text = config.get_text_config(decoder=True)
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == 2:
                setattr(text, name, value * 2)
        text.num_hidden_layers = LAYERS
        torch.manual_seed(seed)
        network = type(model.network)(config).float().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
        return wrap(network, model.tokenizer, name=family)

    return build


def facts(writers):
    return [(w.name, w.layer, w.kind, w.module, w.parameters, w.mixed) for w in writers]


def assert_same(ours, theirs):
    assert facts(ours) == facts(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.coefficient == pytest.approx(b.coefficient, abs=1e-4)
        assert (a.gain is None) == (b.gain is None)
        assert a.gain is None or torch.equal(a.gain, b.gain)


def outcome(model, *, every_block):
    """The writers, or what is said where there are none."""
    try:
        return find_writers(model, every_block=every_block)
    except UserError as error:
        return str(error)


def proven(model, writers):
    """The numbers of the blocks whose proofs these writers rest on."""
    return sorted({model.block_names.index(w.proven_in) for w in writers})


FAMILIES = {
    "llama": [0],
    "qwen3": [0],
    "phi": [0],  # parallel
    "gpt_neox": [0],
    "gpt2": [0],  # Conv1D
    "bloom": [0],
    "granite": [0],  # a multiplier
    "olmo2": [0],  # norms behind the writers
    "gemma2": [0, 1],
    "gemma3": [0, 1],
    "gemma3_vl": [0, 1],
    "mixtral": [0],
    "qwen2_moe": [0],
    "gpt_oss": [0, 1],
    "deepseek_v3": [0, 1],  # dense, then experts
    "qwen3_5": [0, 1],  # linear attention and attention
    "qwen3_5_moe": [0, 1],
    "qwen3_vl": [0],
    "gemma3n": [0, 1, 2, 3],  # mixed
    "deepseek_v4": [0, 1, 2, 3],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_they_are_those_of_every_block(deep, name):
    model = deep(name)
    ours, theirs = find_writers(model, every_block=False), find_writers(model)
    assert_same(ours, theirs)
    assert proven(model, ours) == FAMILIES[name]
    assert proven(model, theirs) == list(range(LAYERS))
    own = {w.name: w for w in theirs}
    assert all(w.error == pytest.approx(own[w.name].error, rel=0.5) for w in ours if w.name.startswith(f"{w.proven_in}."))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_half_precision_gives_the_same_and_nothing_is_changed(deep, name):
    model = deep(name)
    model.network.bfloat16()
    original = {k: v.clone() for k, v in model.network.state_dict().items()}
    ours = find_writers(model, every_block=False)
    assert proven(model, ours) == FAMILIES[name]
    assert_same(ours, find_writers(model))
    assert all(torch.equal(v, original[k]) for k, v in model.network.state_dict().items())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_blocks_that_are_like_a_proven_one_do_not_run(deep, monkeypatch):
    model = deep("llama")
    kind, ran = type(model.blocks[0].mlp), []
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda mlp, x: ran.append(mlp) or own(mlp, x))
    find_writers(model, every_block=False)
    assert {model.blocks.index(b) for b in model.blocks for mlp in ran if b.mlp is mlp} == {0}
    find_writers(model)
    assert all(any(b.mlp is mlp for mlp in ran) for b in model.blocks)


class Told:
    """What a block of its own kind does besides: the number it is told is added along a function of the stream."""

    told = 0.0

    def forward(self, hidden_states, **kwargs):
        out = super().forward(hidden_states, **kwargs)
        return out + self.size(kwargs) * torch.tanh(hidden_states.flip(-1)) if self.size(kwargs) else out

    def size(self, _kwargs):
        return self.told


def all_told(model, kind=Told):
    own = type(model.blocks[0])
    new = type(kind.__name__, (kind, own), {})
    for block in model.blocks:
        block.__class__ = new
    return model.blocks


def hidden_writer(block, _network):
    inner = block.forward
    block.forward = lambda hidden_states, **kwargs: inner(hidden_states, **kwargs) + 0.5 * torch.tanh(hidden_states.flip(-1))


def hidden_in_every_forward(block, network):
    """The same function at every block but for a number bound to it."""

    def added(out, x, size):
        return out + size * torch.tanh(x.flip(-1)) if size else out

    def forward(own, size, hidden_states, **kwargs):
        return added(own(hidden_states, **kwargs), hidden_states, size)

    for each in network.model.layers:
        each.forward = partial(forward, each.forward, 0.5 if each is block else 0.0)


def hook(block, _network):
    block.mlp.register_forward_hook(lambda _module, args, output: output + 0.5 * torch.tanh(args[0].flip(-1)))


def hook_on_the_block(block, _network):
    block.register_forward_hook(lambda _module, args, output: with_first_tensor(output, first_tensor(output) + 0.3 * args[0].tanh()))


def pre_hook(block, _network):
    block.self_attn.o_proj.register_forward_pre_hook(lambda _module, args: (args[0] * 0.5,))


def attribute(block, network):
    all_told(wrapped(network))
    for each in network.model.layers:
        each.told = 0.5 if each is block else 0.0


class Masked(Told):
    def size(self, _kwargs):
        return 0.5 * float(self.buffer.sum() - 8)


def buffer(block, network):
    all_told(wrapped(network), Masked)
    for each in network.model.layers:
        each.register_buffer("buffer", torch.ones(8), persistent=False)
    block.buffer[3] = 2.0


class Scaled(Told):
    def forward(self, hidden_states, **kwargs):
        out = super(Told, self).forward(hidden_states, **kwargs)
        return hidden_states + self.scale * (out - hidden_states)


def scalar(block, network):
    all_told(wrapped(network), Scaled)
    for each in network.model.layers:
        each.scale = nn.Parameter(torch.tensor([1.0 if each is block else 0.25]))


def scalar_zero_in_the_first(_block, network):
    all_told(wrapped(network), Scaled)
    for n, each in enumerate(network.model.layers):
        each.scale = nn.Parameter(torch.tensor(0.0 if n == 0 else 1.0))


def vector(block, network):
    """A scale of each feature that no module holds: constant in all blocks but one, which must be refused."""
    all_told(wrapped(network), Scaled)
    for each in network.model.layers:
        each.scale = nn.Parameter(torch.linspace(0.5, 2, 32) if each is block else torch.ones(32))


def wrapped(network):
    return SimpleNamespace(blocks=list(network.model.layers))


class Half(nn.Module):
    def forward(self, weight):
        return weight * 0.5


def parametrised(block, _network):
    nn.utils.parametrize.register_parametrization(block.mlp.down_proj, "weight", Half())


def other_dtype(block, _network):
    block.double()


def other_class(block, _network):
    class Other(type(block.mlp)):
        def forward(self, x):
            return super().forward(x) + torch.tanh(x)

    block.mlp.__class__ = Other


def shared_part(block, network):
    block.mlp = network.model.layers[1].mlp


def shared_weight(block, network):
    block.mlp.down_proj.weight = network.model.layers[1].mlp.down_proj.weight


PLANTS = [hidden_writer, hidden_in_every_forward, hook, hook_on_the_block, pre_hook, attribute, buffer, scalar, scalar_zero_in_the_first]
PLANTS += [vector, parametrised, other_dtype, other_class, shared_part, shared_weight]
REFUSED = {hidden_writer, hidden_in_every_forward, hook, hook_on_the_block, attribute, buffer, vector, other_class}
PROVEN_IN = {shared_part: {1}, shared_weight: {1}, scalar_zero_in_the_first: {1}}  # by default the block itself


@pytest.mark.parametrize("plant", PLANTS)
def test_a_block_that_differs_is_proven_itself(deep, plant):
    model = deep("llama")
    block = model.blocks[ODD]
    plant(block, model.network)
    wanted, found = outcome(model, every_block=True), outcome(model, every_block=False)
    if isinstance(wanted, str):
        assert found == wanted
        assert plant in REFUSED
        assert f"model.layers.{ODD}" in found
    else:
        assert plant not in REFUSED
        assert_same(found, wanted)
        assert set(proven(model, [w for w in found if w.layer == ODD])) == PROVEN_IN.get(plant, {ODD})


def zeros(_model, tensor):
    tensor.zero_()


def faint(_model, tensor):
    tensor.mul_(1e-8)


def constant(_model, tensor):
    tensor.fill_(2.0)


def no_gain(_model, tensor):
    tensor.fill_(-1.0)  # Gemma's gain is 1 + this


WEIGHTS = [(family, part, change) for family, part in (("llama", "self_attn.o_proj"), ("gpt2", "mlp.c_proj")) for change in (zeros, faint)]
WEIGHTS += [("olmo2", "post_feedforward_layernorm", change) for change in (zeros, faint, constant)]
WEIGHTS += [("gemma3", "post_attention_layernorm", change) for change in (zeros, constant, no_gain)]


@pytest.mark.parametrize("layer", [0, ODD])
@pytest.mark.parametrize(("name", "part", "change"), WEIGHTS)
def test_weights_that_hide_a_writer_or_a_gain_tell_nothing_of_other_blocks(deep, name, part, change, layer):
    model = deep(name)
    with torch.no_grad():
        change(model, model.blocks[layer].get_submodule(part).weight)
    wanted = find_writers(model)
    found = find_writers(model, every_block=False)
    if change is not faint or layer == 0:
        assert_same(found, wanted)
    else:  # a writer that hardly writes may be listed: an edit of it does no harm
        assert {w.name for w in wanted} <= {w.name for w in found}


def test_a_gain_that_two_norms_could_be_is_not_taken_over(deep):
    model = deep("olmo2")
    block = model.blocks[0]
    with torch.no_grad():
        block.post_attention_layernorm.weight.copy_(block.post_feedforward_layernorm.weight)
    found = find_writers(model, every_block=False)
    assert_same(found, find_writers(model))
    assert proven(model, found) == [0, 1]  # block 1, whose norms differ, shows the others


class Holder:
    def __init__(self, value):
        self.deep = [value]


def told_config(model, value):
    config = deepcopy(model.network.config)
    config.told = {"deep": [value]}
    return config


HOLDERS = {
    "float": lambda _, v: v,
    "text": lambda _, v: str(v),
    "list": lambda _, v: [1, 2, v],
    "tuple": lambda _, v: ((v,),),
    "set": lambda _, v: {v},
    "dict": lambda _, v: {"a": {"b": v}},
    "key": lambda _, v: {v: 0},
    "object": lambda _, v: Holder(SimpleNamespace(v=v)),
    "config": told_config,
    "tensor": lambda _, v: torch.tensor([v, 0.0]),
    "bound": lambda _, v: partial(max, v),
    "type": lambda _, v: type(v) if v != 1 else bool,
    "method": lambda _, v: Holder(v).__init__,
    "function": lambda _, v: lambda: v,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_attributes_count_however_deep(deep, holder):
    model = deep("llama")

    def set_up(odd):
        for n, block in enumerate(model.blocks):
            block.mlp.told = HOLDERS[holder](model, odd if n == ODD else 0.5)
        return proven(model, find_writers(model, every_block=False))

    assert ODD in set_up(1.0)
    # Equal ones are alike, but for functions, of which nobody can tell what they close over.
    assert set_up(0.5) == ([0] if holder != "function" else [0, 1, 2, 3])


def test_an_attribute_that_holds_itself_or_cannot_be_looked_at(deep):
    model = deep("llama")
    for block in model.blocks:
        block.mlp.own = SimpleNamespace(block=block.mlp)
        block.mlp.own.itself = block.mlp.own
    assert proven(model, find_writers(model, every_block=False)) == [0]
    for block in model.blocks:
        block.mlp.own = iter([1])
    assert proven(model, find_writers(model, every_block=False)) == [0, 1, 2, 3]


def test_a_block_that_is_called_otherwise_is_proven_itself(deep):
    model = deep("llama")
    all_told(model, type("Asked", (Told,), {"size": lambda _, kwargs: kwargs.get("told", 0.0)}))
    odd = model.blocks[ODD]
    kind = type(odd)
    call = kind.__call__
    kind.__call__ = lambda block, *args, **kwargs: call(block, *args, **kwargs | ({"told": 0.5} if block is odd else {}))
    with pytest.raises(UserError, match=rf"Block model\.layers\.{ODD}"):
        find_writers(model, every_block=False)


class Needs(Told):
    """One block leaves something behind, another cannot do without it."""

    left: ClassVar = {}

    def forward(self, hidden_states, **kwargs):
        out = super().forward(hidden_states, **kwargs)
        if self.self_attn.layer_idx == 1:
            self.left["it"] = True
        return out if not self.told or self.left.pop("it") else None


def test_where_a_later_block_needs_what_an_earlier_one_leaves_every_block_runs(deep, monkeypatch):
    model = deep("llama")
    all_told(model, Needs)
    model.blocks[3].told = False
    model.blocks[ODD].__dict__["told"] = True
    model.blocks[ODD].size = lambda _kwargs: 0
    seen, own = [], module.prove_block
    monkeypatch.setattr(module, "prove_block", lambda *args, **more: seen.append(more["layer"]) or own(*args, **more))
    found = find_writers(model, every_block=False)
    assert proven(model, found) == [0, 1, 2, 3]
    assert seen[:2] == [0, ODD]
    assert seen[-4:] == [0, 1, 2, 3]


def test_a_block_that_runs_twice_is_refused_too(deep):
    model = deep("llama")

    def again(_module, args, kwargs):
        model.blocks[ODD](*args, **kwargs)

    model.blocks[3].register_forward_pre_hook(again, with_kwargs=True)
    with pytest.raises(UserError, match=rf"Block model\.layers\.{ODD} runs \d times"):
        module._found(model, every_block=False)


class Sly(Told):
    """It asks for its own place, which is no part of the structure."""

    def size(self, _kwargs):
        return 0.05 if self.self_attn.layer_idx == ODD else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_structure_cannot_tell_the_edit_proof_does(deep, dtype):
    vectors = torch.randn(LAYERS, 1, 32, generator=torch.Generator().manual_seed(6))
    for kind, blamed in ((Told, []), (Sly, [ODD])):
        model = deep("llama")
        all_told(model, kind)
        model.network.to(dtype)
        writers = find_writers(model, every_block=False)
        assert proven(model, writers) == [0]
        plan = make_plan(writers, vectors, torch.ones(LAYERS))
        before = observe(model, writers, plan)
        bake(model, writers, plan)
        faults = prove(model, writers, plan, before=before).faults
        wanted = "Block model.layers.{} adds the direction through something that is not among its writers"
        assert [f.partition(":")[0] for f in faults] == [wanted.format(n) for n in blamed]
    with pytest.raises(UserError, match=rf"Block model\.layers\.{ODD} "):
        find_writers(all_of(deep("llama"), Sly))


def all_of(model, kind):
    all_told(model, kind)
    return model
