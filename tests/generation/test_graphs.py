"""Decoding steps recorded and replayed. Without a GPU a tape stands in: it repeats a step's operations, not the step."""

import gc
import logging
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resect.edit.hooks import applied
from resect.edit.plan import first_layer, make_plan
from resect.edit.rows import applied_rows
from resect.errors import UserError
from resect.generation import NONE, Drafts, Shortcuts, decoding, engine, respond
from resect.generation.graphs import CudaGraph, can_be_recorded
from resect.models.chat import Rendered
from resect.models.lower import LowerLayers
from resect.models.writers import find_writers

STEPS = 16
STATIC, GRAPHS = (Shortcuts.only(["retire", name]) for name in ("static_cache", "graphs"))
# Values that the host would have to wait for, or shapes that hang on them: a graph can hold neither.
HOST = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
HOST |= {"isin"}  # among many it sorts, and drops what comes twice: within a kernel, where no dispatch shows it
VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "repeat_interleave"}
FAMILIES = ("llama", "qwen3", "gemma3", "qwen3_vl", "gpt_oss", "qwen3_moe")


class NoHost(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in HOST, f"a step reads values on the host: {name}"
        return func(*args, **kwargs or {})


class Tape(TorchDispatchMode):
    """What `CudaGraph` does, on the processor: run once, record once, then repeat the operations on the tensors that they were done on."""

    made: list = []  # noqa: RUF012  of all tapes

    def __init__(self, step):
        super().__init__()
        self._step, self._operations, self._calls = step, [], 0
        Tape.made.append(weakref.ref(self))

    def __call__(self):
        self._calls += 1
        if self._calls == 1:
            self._step()
        elif self._calls == 2:
            with NoHost(), self:
                self._step()
        else:
            self._replay()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in VALUES, f"a step hangs on values: {name}"
        by_mask = name in ("index", "index_put", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])
        assert not by_mask, "a step picks by a mask, and so many as it marks"
        out = func(*args, **kwargs or {})
        self._operations.append((func, args, kwargs or {}, out))
        return out

    def _replay(self):
        for func, args, kwargs, out in self._operations:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor):
                    assert old.shape == new.shape
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@pytest.fixture
def taped(monkeypatch):
    """Decode by tapes in place of CUDA graphs."""
    Tape.made = []
    monkeypatch.setattr(engine, "_recorder", lambda _model, shortcuts: Tape if shortcuts.graphs else None)


@pytest.fixture
def noted(caplog):
    decoding.note_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def prompts(lengths):
    generator = torch.Generator().manual_seed(0)
    return tuple(Rendered(tuple(torch.randint(5, 260, (n,), generator=generator).tolist()), n - 1) for n in lengths)


def prepared(tiny, name):
    """A model some of whose tokens end turns, and whose experts, if it has any, are computed without asking how many go where."""
    model = tiny(name)
    model.network.generation_config.eos_token_id = [2, *range(7, 30)]
    if name in ("gpt_oss", "qwen3_moe"):
        model.network.set_experts_implementation("batched_mm")
    return model, find_writers(model), prompts([3, 17, 9, 9, 4, 12, 1, 9])


def plans_of(model, writers, strengths=(0.5, 1.0, 2.0)):
    vectors = torch.randn(len(model.blocks), 1, model.d_model, generator=torch.Generator().manual_seed(1))
    return [make_plan(writers, vectors, torch.full((len(vectors),), strength)) for strength in strengths]


def plain(model, prompt):
    ids = torch.tensor([prompt.ids])
    options = {"max_new_tokens": STEPS, "eos_token_id": sorted(model.end_ids), "pad_token_id": model.pad_id, "do_sample": False}
    return tuple(model.network.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt.ids) :].tolist())


def ids(responses):
    return [r.ids for r in responses]


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_steps_say_what_generate_says_under_every_edit(tiny, name):
    model, writers, rendered = prepared(tiny, name)
    plans, expected = plans_of(model, writers), []
    for plan in plans:
        with applied(model, writers, plan):
            expected.append([plain(model, prompt) for prompt in rendered])
            assert ids(respond(model, rendered, max_new_tokens=STEPS, shortcuts=GRAPHS)) == expected[-1]
    assert len({answer for arm in expected for answer in arm}) > len(rendered)  # a record of an earlier edit would be found out
    assert len({len(answer) for arm in expected for answer in arm}) > 2
    with applied_rows(model, writers, [plan for plan in plans for _ in rendered]) as rows:
        said = respond(model, rendered * len(plans), max_new_tokens=STEPS, edits=rows, shortcuts=GRAPHS)
    assert ids(said) == [answer for arm in expected for answer in arm]
    assert len(Tape.made) >= len(plans) + 1


@pytest.mark.usefixtures("taped")
def test_most_steps_do_not_run_the_network_s_code_and_no_record_outlives_its_batch(tiny):
    """Five of eight rows end at their third token: the others are recorded anew, as a smaller batch."""
    model, _, rendered = prepared(tiny, "llama")
    model.network.generation_config.eos_token_id = [2]
    options = {"max_new_tokens": STEPS, "stop": lambda prompt, new: prompt in rendered[:5] and len(new) == 3}
    expected, seen = respond(model, rendered, **options, shortcuts=NONE), []
    respond(model, rendered[-1:], max_new_tokens=2, shortcuts=GRAPHS)  # whether the network can is tried once
    Tape.made.clear()
    model.network.register_forward_pre_hook(lambda *_: seen.append(1))
    gc.disable()
    try:
        assert respond(model, rendered, **options, shortcuts=GRAPHS) == expected
        assert [ref() for ref in Tape.made] == [None, None]
    finally:
        gc.enable()
    assert [len(r.ids) for r in expected] == [3] * 5 + [STEPS] * 3
    assert len(seen) == 1 + 2 * 2  # the prompts, and each of two records twice


@pytest.mark.usefixtures("taped")
def test_guesses_rules_and_remembered_layers_go_before_and_around_records(tiny):
    """Guesses are fed in a growing cache; what they leave of it is fixed, gaps and all."""
    model, writers, rendered = prepared(tiny, "qwen3")
    model.network.generation_config.eos_token_id = [2]
    drafts, free = Drafts(), respond(model, rendered, max_new_tokens=STEPS, shortcuts=NONE)
    for n, (prompt, response) in enumerate(zip(rendered, free, strict=True)):
        drafts.learn(prompt, (*response.ids[: 2 + n], *[(i + 1) % 90 + 40 for i in response.ids[2 + n :]]))
    marked = free[1].ids[7]
    options = {"max_new_tokens": STEPS, "stop": lambda _prompt, new: marked in new}
    stopped = respond(model, rendered, **options, shortcuts=NONE)
    assert respond(model, rendered, **options, drafts=drafts, shortcuts=Shortcuts.only(["retire", "drafts", "graphs"])) == stopped
    vectors = torch.randn(2, 1, model.d_model, generator=torch.Generator().manual_seed(6))
    lower = LowerLayers(model)
    for gamma in (0.5, 2.0):
        plan = make_plan(writers, vectors, torch.tensor([0.0, gamma]))
        with applied(model, writers, plan):
            expected = respond(model, rendered, max_new_tokens=STEPS, shortcuts=NONE)
            with lower.below(first_layer(writers, plan)):
                assert respond(model, rendered, max_new_tokens=STEPS, shortcuts=GRAPHS) == expected
    assert lower.reused


READING = {
    "item": lambda y: y.max().item(),
    "list": lambda y: y.sum().tolist(),
    "mask": lambda y: y[y > 0],
    "truth": lambda y: bool((y > 0).any()),
}


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("way", READING)
def test_a_step_that_reads_values_is_found_out(tiny, way):
    model, _, rendered = prepared(tiny, "llama")

    def reading(_module, _args, output):
        READING[way](output)

    model.blocks[0].register_forward_hook(reading)
    with pytest.raises(AssertionError, match="a step"):
        respond(model, rendered, max_new_tokens=STEPS, shortcuts=GRAPHS)


def test_a_step_whose_tensors_move_is_found_out():
    """The tape repeats operations on the tensors that it saw: what a step binds anew it does not follow."""
    state = {"still": torch.zeros(()), "moved": torch.zeros(())}

    def step():
        state["still"] += 1
        state["moved"] = state["moved"] + 1

    tape = Tape(step)
    for _ in range(5):
        tape()
    assert (float(state["still"]), float(state["moved"])) == (5, 2)


@pytest.mark.usefixtures("taped")
def test_logits_without_a_largest_are_refused_in_a_replay(tiny):
    model, _, rendered = prepared(tiny, "llama")
    model.network.generation_config.eos_token_id = [2]
    respond(model, rendered, max_new_tokens=2, shortcuts=GRAPHS)
    steps = torch.zeros(())

    def overflow(_module, _args, logits):
        steps.add_(1)
        return torch.where(steps == 9, torch.nan, logits)  # once: no later step may forget it

    with model.network.lm_head.register_forward_hook(overflow), pytest.raises(UserError, match="hold NaN or infinity"):
        respond(model, rendered, max_new_tokens=STEPS, shortcuts=GRAPHS)
    assert steps > 9


@pytest.mark.parametrize("shortcuts", [STATIC, GRAPHS])
def test_what_a_shortcut_cannot_do_here_is_said_once_and_the_tokens_are_the_same(tiny, noted, shortcuts):
    """A hybrid has no fixed cache, the processor has no graphs."""
    model, _, rendered = prepared(tiny, "qwen3_5")
    expected = [plain(model, prompt) for prompt in rendered]
    for _ in range(2):
        assert ids(respond(model, rendered, max_new_tokens=STEPS, batch_tokens=30, shortcuts=shortcuts)) == expected
    said = "cannot decode in a cache of fixed length" if shortcuts is STATIC else "is not on one CUDA device"
    assert [said in record.getMessage() for record in noted.records if record.name.startswith("resect")] == [True]
    assert not can_be_recorded(model.network)


class Recording:
    """The parts of torch.cuda that `CudaGraph` uses, and what was done with them, in order."""

    def __init__(self, fails=None):
        self.done, self._fails = [], fails

    def install(self, monkeypatch):
        for name in ("CUDAGraph", "graph", "Stream", "stream", "current_stream", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        return self

    def CUDAGraph(self):
        return self

    def replay(self):
        self.done.append("replay")

    @contextmanager
    def graph(self, _graph):
        self.done.append("record")
        yield
        if self._fails is not None:
            raise self._fails

    def Stream(self):
        return self

    current_stream = Stream

    def wait_stream(self, _other):
        self.done.append("wait")

    def stream(self, _stream):
        return nullcontext()

    def device(self, device):
        assert str(device) == "cuda:1"
        return nullcontext()


def test_a_cuda_graph_warms_up_beside_records_once_and_replays(monkeypatch):
    cuda = Recording().install(monkeypatch)
    graph = CudaGraph(lambda: cuda.done.append("step"), device=torch.device("cuda:1"))
    for _ in range(4):
        graph()
    # Recording computes nothing, so it is followed by a replay: four calls are four steps.
    assert cuda.done == ["wait", "step", "wait", "record", "step", "replay", "replay", "replay"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with"), UserError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
    ],
)
def test_a_step_that_cannot_be_recorded_is_named_and_want_of_memory_is_left_to_the_engine(monkeypatch, error, raised):
    Recording(error).install(monkeypatch)
    graph = CudaGraph(lambda: None, device=torch.device("cuda:1"))
    graph()
    with pytest.raises(raised, match="CUDA") as caught:
        graph()
    assert raised is not UserError or "take graphs out of the setting shortcuts" in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device is needed")
@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_gpu_graphs_say_what_plain_decoding_says(tiny, name):
    model, _, rendered = prepared(tiny, name)
    model.network.to("cuda")
    writers = find_writers(model)
    assert can_be_recorded(model.network)
    for plan in plans_of(model, writers):
        with applied(model, writers, plan):
            expected = respond(model, rendered, max_new_tokens=STEPS, shortcuts=NONE)
            assert respond(model, rendered, max_new_tokens=STEPS, shortcuts=STATIC) == expected
            assert respond(model, rendered, max_new_tokens=STEPS, shortcuts=GRAPHS) == expected
