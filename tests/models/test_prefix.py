import gc
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.edit.rows import applied_rows
from resect.evaluation.forced import score
from resect.evaluation.logprobs import next_token_logprobs, response_logprobs
from resect.generation import NONE, Drafts, Shortcuts, respond
from resect.models import prefix
from resect.models.chat import Rendered
from resect.models.forward import cache_argument
from resect.models.lower import LowerLayers
from resect.models.prefix import begun_with, common, shared_prefix
from resect.models.writers import find_writers

SYSTEM = tuple(torch.randint(8, 250, (21,), generator=torch.Generator().manual_seed(3)).tolist())
LENGTHS = (3, 17, 9, 9, 1, 12, 4, 7, 6)
PLAIN_CACHE = ("llama", "qwen3_moe", "gpt2", "bloom", "gpt_neox", "qwen3_vl", "deepseek_v3", "phi")
OTHER_CACHE = ("gemma3", "gpt_oss", "qwen3_5", "gemma3n")
FAMILIES = (*PLAIN_CACHE, *OTHER_CACHE)
STEPS = 7


def prompts(system=SYSTEM):
    generator = torch.Generator().manual_seed(1)
    rests = [tuple(torch.randint(8, 250, (n,), generator=generator).tolist()) for n in LENGTHS]
    return tuple(Rendered((*system, *rest), None) for rest in rests)


def plain(model, row):
    ids = torch.tensor([row.ids])
    out = model.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
    return tuple(out[0, len(row.ids) :].tolist())


def edit(model, preserve="nothing"):
    writers = find_writers(model)
    vectors = torch.randn(len(model.blocks), 1, model.d_model, generator=torch.Generator().manual_seed(6))
    return writers, make_plan(writers, vectors, torch.tensor([0.0, 1.0]), preserve=preserve)


@pytest.fixture
def fed():
    """A function: a model to a list that grows by the rows and columns of every pass."""

    def watch(model):
        seen = []

        def note(_module, _args, kwargs):
            seen.append(tuple(kwargs["input_ids"].shape))

        model.network.register_forward_pre_hook(note, with_kwargs=True)
        return seen

    return watch


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=6))
def test_the_common_beginning_is_the_longest_that_leaves_a_token_of_each(rows):
    found = common(rows)
    assert all(row[: len(found)] == found and len(row) > len(found) for row in rows)
    if rows:
        longer = {row[: len(found) + 1] for row in rows}
        assert len(longer) > 1 or any(len(row) == len(found) + 1 for row in rows)
    else:
        assert found == ()


@pytest.mark.parametrize("name", PLAIN_CACHE)
def test_what_all_prompts_begin_with_is_fed_once(tiny, fed, name):
    model = tiny(name)
    respond(model, prompts(), max_new_tokens=STEPS)  # padding is tried out here
    seen = fed(model)
    respond(model, prompts(), max_new_tokens=STEPS)
    assert seen[:2] == [(1, len(SYSTEM)), (len(LENGTHS), max(LENGTHS))]
    del seen[:]
    respond(model, prompts(), max_new_tokens=STEPS, shortcuts=NONE)
    assert seen[0] == (len(LENGTHS), len(SYSTEM) + max(LENGTHS))


@pytest.mark.parametrize("name", FAMILIES)
def test_responses_are_those_of_plain_decoding(tiny, name):
    model = tiny(name)
    expected = [plain(model, row) for row in prompts()]
    drafts = Drafts()
    for _ in range(2):  # the second time with guesses
        assert [r.ids for r in respond(model, prompts(), max_new_tokens=STEPS, drafts=drafts)] == expected
    assert [r.ids for r in respond(model, prompts(), max_new_tokens=STEPS, batch_tokens=64)] == expected
    fixed = Shortcuts(static_cache=True)
    assert [r.ids for r in respond(model, prompts(), max_new_tokens=STEPS, shortcuts=fixed)] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_are_those_without_it(tiny, name):
    model = tiny(name)
    said = respond(model, prompts(), max_new_tokens=STEPS)
    for shared in (next_token_logprobs, lambda *a, **k: response_logprobs(a[0], a[1], said, k=5, **k).rows):
        with_it, without = (shared(model, prompts(), share_prefix=share) for share in (True, False))
        assert (with_it - without).abs().max() < 2e-5


@pytest.mark.parametrize("preserve", ["nothing", "row"])
def test_it_is_fed_to_the_network_as_it_is_edited(tiny, preserve):
    model = tiny("llama")
    writers, plan = edit(model, preserve)
    base = next_token_logprobs(model, prompts())
    with applied(model, writers, plan):
        found, expected = (next_token_logprobs(model, prompts(), share_prefix=share) for share in (True, False))
    assert (found - expected).abs().max() < 2e-5
    assert (base - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", OTHER_CACHE)
def test_a_cache_that_holds_something_else_is_tried_once(tiny, fed, name):
    model = tiny(name)
    assert shared_prefix(model, [r.ids for r in prompts()]) is None
    seen = fed(model)
    assert shared_prefix(model, [r.ids for r in prompts()]) is None
    assert seen == []


def test_a_network_that_counts_columns_gets_whole_prompts(tiny, fed, caplog):
    """Distances between tokens are right where padding stands on the left, and wrong where it stands among them."""
    model = tiny("llama")
    own = model.network.forward
    model.network.forward = lambda *args, **kwargs: own(*args, **{k: v for k, v in kwargs.items() if k != "position_ids"})
    expected = [plain(model, row) for row in prompts()]
    with caplog.at_level(logging.WARNING):
        assert [r.ids for r in respond(model, prompts(), max_new_tokens=STEPS)] == expected
    (said,) = (r.getMessage() for r in caplog.records)
    assert "padded (after its first tokens)" in said
    assert "what its prompts share is fed with each: exact, but slower" in said
    seen = fed(model)
    respond(model, prompts(), max_new_tokens=STEPS)
    assert len(SYSTEM) + max(LENGTHS) in {columns for _, columns in seen}
    assert heeded_left(model)


def heeded_left(model):
    return prefix.heeds_padding(model, "left", tokens=len(SYSTEM) + max(LENGTHS))


@pytest.mark.parametrize("few", [prompts()[:6], prompts(SYSTEM[:10]), prompts()[:1], ()])
def test_where_little_is_spared_nothing_is_fed(tiny, fed, few):
    model = tiny("llama")
    seen = fed(model)
    assert shared_prefix(model, [r.ids for r in few]) is None
    assert seen == []


def test_rows_with_edits_of_their_own_share_nothing(tiny, monkeypatch):
    model = tiny("llama")
    writers, plan = edit(model)

    def never(*_args, **_kwargs):
        raise AssertionError("the first tokens of rows with other edits are not the same to the network")

    with applied(model, writers, plan):
        expected = respond(model, prompts(), max_new_tokens=STEPS), next_token_logprobs(model, prompts())
    for module in ("resect.generation.engine", "resect.evaluation.forced"):
        monkeypatch.setattr(f"{module}.shared_prefix", never)
    with applied_rows(model, writers, [plan] * len(LENGTHS)) as rows:
        found = respond(model, prompts(), max_new_tokens=STEPS, edits=rows), next_token_logprobs(model, prompts(), edits=rows)
    assert found[0] == expected[0]
    assert (found[1] - expected[1]).abs().max() < 2e-5


def test_a_growing_cache_keeps_what_is_fed_and_a_passing_one_does_not(tiny):
    model = tiny("llama")
    shared = shared_prefix(model, [r.ids for r in prompts()])
    rest = torch.tensor([[7, 8, 9], [10, 11, 12]])
    name, growing, passing = cache_argument(model.network), shared.growing(2), shared.passing(2)
    assert begun_with(growing) == (True, SYSTEM)
    assert begun_with(passing) == (False, SYSTEM)
    with torch.no_grad():
        logits = [model.network(input_ids=rest, use_cache=True, **{name: cache}).logits for cache in (growing, passing)]
    assert torch.equal(*logits)
    assert growing.get_seq_length() == len(SYSTEM) + 3
    assert passing.get_seq_length() == len(SYSTEM)
    assert begun_with(growing) is None
    assert begun_with(passing) == (False, SYSTEM)
    assert begun_with(shared.growing(3)) == (True, SYSTEM)


def test_caches_are_not_kept_alive(tiny):
    model = tiny("llama")
    gc.collect()
    before = len(prefix._begun)
    respond(model, prompts(), max_new_tokens=STEPS)
    next_token_logprobs(model, prompts())
    gc.collect()
    assert len(prefix._begun) == before


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_lower_layers_remember_what_comes_after_it(tiny, name):
    """Scoring keeps nothing of a pass and decoding does, so one does not answer for the other."""
    model = tiny(name)
    writers, plan = edit(model)
    with applied(model, writers, plan):
        expected = next_token_logprobs(model, prompts()), respond(model, prompts(), max_new_tokens=STEPS)
    lower = LowerLayers(model)
    with lower.below(1):
        pass
    counts = []
    for _ in range(3):
        before = lower.reused
        with applied(model, writers, plan), lower.below(1):
            assert torch.equal(next_token_logprobs(model, prompts()), expected[0])
            assert respond(model, prompts(), max_new_tokens=STEPS) == expected[1]
        counts.append(lower.reused - before)
    # First the prefix is known from scoring when it is decoded; then the rest is, too.
    assert counts[0] == 1
    assert counts[1] == counts[2] > 2


def test_the_same_rest_after_another_prefix_is_another_batch(tiny):
    model, other = tiny("llama"), prompts(SYSTEM[::-1])
    expected = [next_token_logprobs(model, rows) for rows in (prompts(), other)]
    lower = LowerLayers(model)
    for _ in range(2):
        with lower.below(1):
            found = [next_token_logprobs(model, rows) for rows in (prompts(), other)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_half_precision_scores_as_well_with_it(tiny):
    model = tiny("llama")
    model.network.to(torch.bfloat16)
    ids = [r.ids for r in prompts()]
    exact = tiny("llama")
    exact.network.load_state_dict(model.network.state_dict())
    (truth,) = score(exact, ids, [(0,)] * len(ids), share_prefix=False)
    errors = []
    for share in (True, False):
        (found,) = score(model, ids, [(0,)] * len(ids), share_prefix=share)
        assert found.rows == truth.rows
        errors.append(float((found.logprobs - truth.logprobs).abs().mean()))
    assert errors[0] < 1.5 * errors[1]
