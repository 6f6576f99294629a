"""Predicted bytes against the bytes of the tensors that are really made: exact where it is counting, close where it is a peak."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from resect.activations import capture
from resect.edit.bake import bake
from resect.edit.plan import make_plan
from resect.errors import UserError
from resect.evaluation.logprobs import next_token_logprobs
from resect.evaluation.slopes import slopes
from resect.generation import Shortcuts, respond
from resect.models import memory
from resect.models.chat import Rendered
from resect.models.forward import cache_argument
from resect.models.live import Live
from resect.models.load import check_finite, wrap
from resect.models.memory import Workload
from resect.models.writers import Writer, WriterParameter, find_writers

ROWS, TOKENS, NEW = 24, 48, 16
BUDGET = 512


def work(tokens, **other):
    plain = {"batch_tokens": BUDGET, "new_tokens": NEW, "captured": len(tokens), "observed": len(tokens), "learnt": 0}
    return Workload(
        tuple(tokens), **plain | {"scored": 0, "forced": 1, "logits_at_once": 1 << 26, "backward_tokens": 64, "followed": 2} | other
    )


def prompts(tokens):
    return [Rendered(range(5, 5 + n)) for n in tokens]


def storages(network):
    tensors = [*network.parameters(), *network.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def peak_of(action):
    with torch.no_grad(), Live() as live:
        kept = action()
    del kept
    return live.peak


@pytest.fixture
def pair(tiny):
    """A function: a tiny model of a family in a dtype, and its network without data."""

    def build(family, dtype=torch.float32):
        model = tiny(family)
        model.network.to(dtype)
        return model, memory.without_weights(model.network.config, dtype=dtype)

    return build


def test_weights_are_counted_to_the_byte(tiny, family):
    network = tiny(family).network
    network.config.architectures = [type(network).__name__]
    # A new network: casting one also casts buffers that stay in float32 when it is made in half precision.
    made = type(network)._from_config(network.config, dtype=torch.bfloat16)
    assert memory.weight_bytes(memory.without_weights(network.config, dtype=torch.bfloat16)) == storages(made)


def test_the_cache_is_counted_to_the_byte(pair):
    model, empty = pair("qwen3", torch.bfloat16)
    layers, heads, width = 2, 2, 8
    found = memory.run_to_logits(empty, ROWS, TOKENS, kept=1, cache=True)
    assert found.cache == 2 * ROWS * TOKENS * layers * heads * width * 2
    with torch.no_grad():
        output = model.network(input_ids=torch.ones(ROWS, TOKENS, dtype=torch.long), use_cache=True)
    past = output[cache_argument(model.network)]
    assert found.cache == sum(t.untyped_storage().nbytes() for layer in past.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("make", ["gemma3", "gpt2", "mixtral", "qwen3_5", "gpt_oss"])
def test_caches_of_every_make_are_counted(pair, make):
    """Sliding windows, linear attention: whatever the network keeps, found by what becomes free with it."""
    model, empty = pair(make)
    with torch.no_grad(), Live() as live:
        output = model.network(input_ids=torch.ones(4, TOKENS, dtype=torch.long), use_cache=True, logits_to_keep=1)
        past = output[cache_argument(model.network)]
        del output
        before = live.now
        del past
    counter = 8  # what a sliding window counts its tokens with
    assert 0 <= memory.run_to_logits(empty, 4, TOKENS, kept=1, cache=True).cache - (before - live.now) <= counter
    assert before - live.now > 1000


def test_kept_rows_and_distributions_are_counted_to_the_byte(pair):
    model, empty = pair("qwen3")
    tokens = [TOKENS] * ROWS
    assert memory.capture_stage(empty, work(tokens)).host == capture(model, prompts(tokens)).rows.nbytes
    assert memory.study_stage(empty, work(tokens)).host == next_token_logprobs(model, prompts(tokens)).nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", ["qwen3", "gpt2", "mixtral", "qwen3_5"])
def test_peaks_of_capture_generation_and_scoring(pair, make, dtype):
    """Within a third, on networks so narrow that padding masks weigh as much as activations; without padding within 15 %."""
    model, empty = pair(make, dtype)
    for tokens, slack in (([TOKENS] * ROWS, 0.15), ([TOKENS] * (ROWS - 1) + [40], 0.34)):
        asked, given = work(tokens), prompts(tokens)
        stage = memory.capture_stage(empty, asked)
        real = peak_of(lambda p=given: capture(model, p, batch_tokens=BUDGET))
        assert stage.device + stage.host == pytest.approx(real, rel=slack)
        real = peak_of(lambda p=given: respond(model, p, max_new_tokens=NEW, batch_tokens=BUDGET, shortcuts=Shortcuts.only(("retire",))))
        shapes = memory.shapes(asked)
        assert max(memory.generation_bytes(empty, *shape, new=NEW) for shape in shapes) == pytest.approx(real, rel=slack)
        real = peak_of(lambda p=given: next_token_logprobs(model, p, batch_tokens=BUDGET, share_prefix=False))
        kept = len(tokens) * 260 * 4
        assert memory.scoring_bytes(empty, asked) + kept == pytest.approx(real, rel=slack)
        # What prompts begin with is fed once, which takes less than is predicted; whether it may be is found out before.
        next_token_logprobs(model, given, batch_tokens=BUDGET)
        assert peak_of(lambda p=given: next_token_logprobs(model, p, batch_tokens=BUDGET)) < 1.02 * real


def test_more_of_anything_needs_more(pair):
    _, empty = pair("qwen3")
    small = memory.predict(empty, work([TOKENS] * ROWS, scored=4, learnt=8), on_cpu=True)
    for change in ({"batch_tokens": 2 * BUDGET}, {"captured": 500}, {"observed": 500}, {"scored": 500}, {"learnt": 500}):
        large = memory.predict(empty, work([TOKENS] * ROWS, **{"scored": 4, "learnt": 8} | change), on_cpu=True)
        assert all(b.device >= a.device and b.host >= a.host for a, b in zip(small, large, strict=True)), change
        assert large != small, change
    assert [stage.name for stage in small] == ["load", "capture", "study", "save"]
    assert small[1].total(on_cpu=True) == small[1].device + small[1].host
    assert small[1].total(on_cpu=False) == small[1].device


def test_the_processor_packs_the_head_once_a_row_in_bfloat16(pair):
    """The figures behind it are measured by benchmarks/memory.py: an allocation inside a kernel is no tensor."""
    head = 260 * 32
    for dtype, wanted in ((torch.bfloat16, 10 * head * 2), (torch.float16, 0), (torch.float32, 0)):
        _, empty = pair("qwen3", dtype)
        assert memory.packed_bytes(empty, 10, on_cpu=True) == wanted
        assert memory.packed_bytes(empty, 10, on_cpu=False) == 0
    _, empty = pair("qwen3", torch.bfloat16)
    asked = work([4] * 128, batch_tokens=512)
    wanted = 128 * head * 2
    assert memory.generation_bytes(empty, 128, 4, False, new=1, on_cpu=True) >= wanted
    assert memory.scoring_bytes(empty, asked, on_cpu=True) >= wanted > memory.scoring_bytes(empty, asked)


def test_the_search_for_nan_holds_nothing(pair):
    model, _ = pair("qwen3", torch.bfloat16)
    assert peak_of(lambda: check_finite(model.network, name="tiny")) < 100


@pytest.mark.parametrize("make", ["qwen3", "gpt2", "mixtral", "qwen3_5"])
def test_peak_of_the_forecasts_backward_pass(pair, make):
    """Within a third: a narrow network's experts and linear attention keep more of indices and padding than of activations."""
    model, empty = pair(make)
    writers = find_writers(model)
    plan = make_plan(writers, torch.ones(len(model.blocks), 1, model.d_model), torch.ones(len(model.blocks)))

    def numbers(logprobs):
        return [logprobs[:, j] for j in range(3)]

    def real(tokens):
        with Live() as live:
            slopes(model, writers, prompts(tokens), [plan], numbers, batch_tokens=BUDGET // 4)
        return live.peak

    for count in (1, 2 * ROWS):
        asked = work([TOKENS] * count, backward_tokens=BUDGET // 4, followed=3)
        assert memory.slopes_bytes(empty, asked) == pytest.approx(real([TOKENS] * count), rel=0.34)
    assert memory.slopes_bytes(empty, asked) > 2 * memory.capture_stage(empty, replace(asked, batch_tokens=BUDGET // 4)).device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_baking_a_large_matrix(tiny, dtype):
    """Large enough for float32 algebra; small ones are edited in float64, and weigh nothing."""
    wide = 8400
    config = LlamaConfig(vocab_size=64, hidden_size=1024, intermediate_size=wide, num_hidden_layers=1, num_attention_heads=8)
    network = LlamaForCausalLM._from_config(config, dtype=dtype)
    model = wrap(network, tiny("qwen3").tokenizer, name="wide")
    name = "model.layers.0.mlp.down_proj"
    writer = Writer(name, 0, "mlp", name, None, (WriterParameter(f"{name}.weight", "out_in"),))
    plan = make_plan([writer], torch.ones(1, 1, 1024), torch.ones(1))
    real = peak_of(lambda: bake(model, [writer], plan))
    assert memory.bake_bytes(memory.without_weights(config, dtype=dtype)) == pytest.approx(real, rel=0.02)


def test_shapes_are_those_of_the_batches():
    assert set(memory.shapes(work([10] * 100, batch_tokens=100))) == {(10, 10, False)}
    assert set(memory.shapes(work([50, 10, 10, 10], batch_tokens=60))) == {(1, 50, False), (3, 10, False)}
    assert set(memory.shapes(work([20, 19], batch_tokens=60))) == {(2, 20, True)}
    assert set(memory.shapes(work([20, 19, 10], batch_tokens=60), max_padding=1)) == {(2, 20, True)}
    assert set(memory.shapes(work([20, 19, 10], batch_tokens=60))) == {(3, 20, True)}


def test_a_network_that_cannot_be_run_without_data_is_named(pair):
    _, empty = pair("qwen3")

    def asks_for_data(*_, **__):
        return torch.empty(1, device="meta").tolist()

    empty.model.layers[0].forward = asks_for_data
    with pytest.raises(UserError, match=r"A pass of Qwen3ForCausalLM cannot be run without data .* its weights are \d+ bytes"):
        memory.predict(empty, work([TOKENS]), on_cpu=True)
