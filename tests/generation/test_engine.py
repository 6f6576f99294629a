from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.edit.rows import applied_rows
from resect.errors import UserError
from resect.evaluation.verdicts import judge_markers
from resect.generation import NONE, Drafts, Response, Shortcuts, read, respond
from resect.generation.ties import partings
from resect.models.chat import Rendered
from resect.models.load import wrap
from resect.models.padding import heeds_padding
from resect.models.writers import find_writers
from resect.organism import architectures

VOCAB = 96
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"head_dim": 8, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.4, "tie_word_embeddings": False}
SLIDING = ["sliding_attention", "full_attention"] * 2
HYBRID = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRID |= {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"], "pad_token_id": None}
ARCHITECTURES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, sliding_window=8, layer_types=SLIDING)),
    "qwen3_5": lambda: Qwen3_5ForCausalLM(Qwen3_5TextConfig(**(SMALL | HYBRID))),
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
THINKING = TEMPLATE + "{# <think> </think> #}"


def word_tokenizer(template=TEMPLATE, *, tags="plain", size=VOCAB):
    words = ["<pad>", "<end>", "<bos>", *(["<think>", "</think>"] if tags != "absent" else [])]
    words += [f"w{i}" for i in range(len(words), size)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = ["<think>", "</think>"] if tags == "special" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", bos_token="<bos>", unk_token="<pad>",
        additional_special_tokens=extra, chat_template=template,
    )  # fmt: skip


def chat_model(architecture, seed=0, **tokenizer_options):
    torch.manual_seed(seed)
    return wrap(ARCHITECTURES[architecture](), word_tokenizer(**tokenizer_options), name=architecture)


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(Rendered(torch.randint(5, VOCAB, (n,), generator=generator).tolist(), n - 1) for n in lengths)


def plain(model, prompt, steps):
    """The reference: `generate` on one prompt alone, the prompt cut off."""
    ids = torch.tensor([prompt.ids])
    ends = sorted(model.end_ids)
    out = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps, eos_token_id=ends, pad_token_id=0
    )
    return tuple(out[0, len(prompt.ids) :].tolist())


def end_with(model, ids):
    model.network.generation_config.eos_token_id = sorted(ids)


def with_ends(model, rendered, steps):
    """Make tokens that the model does emit end its turns, so that rows end at different steps."""
    free = [plain(model, p, steps) for p in rendered]
    middle = {row[len(row) // (2 + k % 3)] for k, row in enumerate(free[:3])}
    end_with(model, {1, *middle})
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_generate(architecture):
    rendered = prompts([3, 17, 9, 9, 4, 12, 1, 9])
    model = with_ends(chat_model(architecture), rendered, 24)
    expected = [plain(model, p, 24) for p in rendered]
    assert len({len(row) for row in expected}) > 2  # rows do end at different steps
    for batch_tokens in (8192, 40, 1):
        got = respond(model, rendered, max_new_tokens=24, batch_tokens=batch_tokens)
        assert [r.ids for r in got] == expected
    assert [r.finished for r in got] == [row[-1] in model.end_ids for row in expected]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_one_length_need_no_mask(architecture):
    rendered = prompts([6] * 5, seed=3)
    model = with_ends(chat_model(architecture, seed=1), rendered, 12)
    assert [r.ids for r in respond(model, rendered, max_new_tokens=12)] == [plain(model, p, 12) for p in rendered]


def test_penalties_of_the_generation_config_are_ignored():
    model, rendered = chat_model("qwen3"), prompts([5, 7])
    before = respond(model, rendered, max_new_tokens=16)
    model.network.generation_config.repetition_penalty = 5.0
    model.network.generation_config.do_sample = True
    assert respond(model, rendered, max_new_tokens=16) == before


def test_stop_retires_a_row_and_leaves_the_others_alone():
    model, rendered = chat_model("qwen3"), prompts([5, 7, 6, 8])
    free = respond(model, rendered, max_new_tokens=16)
    marked = free[1].ids[3]
    got = respond(model, rendered, max_new_tokens=16, stop=lambda _prompt, ids: marked in ids)
    for whole, cut in zip(free, got, strict=True):
        end = whole.ids.index(marked) + 1 if marked in whole.ids else len(whole.ids)
        assert cut.ids == whole.ids[:end]
    assert not got[1].finished
    assert len(got[1].ids) == 4


def test_ended_rows_leave_the_batch():
    rendered = prompts([6] * 8, seed=5)
    model = chat_model("llama")
    sizes = []
    model.network.register_forward_pre_hook(lambda _m, _a, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    keep = respond(model, rendered[:1], max_new_tokens=10)[0].ids
    sizes.clear()
    respond(model, rendered, max_new_tokens=10, stop=lambda _prompt, ids: ids != keep[: len(ids)])
    assert sizes[0] == 8
    assert sizes[-1] < 8
    assert len(sizes) == 10
    sizes.clear()
    respond(model, rendered, max_new_tokens=10, stop=lambda _prompt, ids: len(ids) == 2)
    assert sizes == [8, 8]  # nobody left: no further step


def test_end_token_is_kept_in_ids_and_left_out_of_text():
    model, prompt = chat_model("qwen3"), prompts([3])[0]
    assert read(model, [7, 8, 1], prompt=prompt) == Response((7, 8, 1), "w7 w8", finished=True)
    assert not read(model, [7, 8], prompt=prompt).finished
    assert read(model, [], prompt=prompt).text == ""


@pytest.mark.parametrize("tags", ["plain", "special"])
def test_leading_thinking_block_is_skipped(tags):
    model, prompt = chat_model("qwen3", template=THINKING, tags=tags), prompts([3])[0]
    opening, closing = 3, 4
    assert read(model, [opening, 7, 8, closing, 9, 10, 1], prompt=prompt).answer_text == "w9 w10"
    assert read(model, [opening, 7, 8], prompt=prompt).answer_text == ""  # still thinking
    assert read(model, [9, opening, 7, closing], prompt=prompt).answer is None  # not leading
    assert read(model, [9, 10, 1], prompt=prompt).answer_text == "w9 w10"


def test_block_opened_by_the_prompt_ends_at_its_closing_tag():
    model = chat_model("qwen3", template=THINKING)
    prompt = Rendered((5, 6, 3), 1, in_thinking=True)
    assert read(model, [7, 8, 4, 9, 1], prompt=prompt).answer_text == "w9"
    assert read(model, [7, 8, 9], prompt=prompt).answer_text == ""


def test_tags_count_only_where_the_template_has_them():
    model, prompt = chat_model("qwen3"), prompts([3])[0]
    assert read(model, [3, 7, 4, 9], prompt=prompt).answer_text == "<think> w7 </think> w9"


def test_bad_input_is_named():
    model, rendered = chat_model("qwen3"), prompts([4])
    with pytest.raises(UserError, match="at least 1, got 0"):
        respond(model, rendered, max_new_tokens=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("from_pass", [0, 1, 3])
@pytest.mark.parametrize("drafted", [False, True])
def test_logits_without_a_largest_are_refused_whenever_they_come(value, from_pass, drafted):
    """NaN is the largest of all to argmax: unnoticed, the rest of a response would be one token again and again."""
    model, rendered, drafts = chat_model("qwen3"), prompts([4, 6]), Drafts()
    free = respond(model, rendered, max_new_tokens=12, drafts=drafts)
    seen = []

    def overflow(_module, _args, logits):
        seen.append(1)
        return torch.full_like(logits, value) if len(seen) > from_pass else logits

    if drafted:
        drafts = Drafts()
        for prompt, response in zip(rendered, free, strict=True):
            drafts.learn(prompt, (*response.ids[:3], (response.ids[3] + 1) % VOCAB, *response.ids[4:]))
    with model.network.lm_head.register_forward_hook(overflow), pytest.raises(UserError, match="logits of qwen3 hold NaN or infinity"):
        respond(model, rendered, max_new_tokens=12, drafts=drafts if drafted else None)
    assert len(seen) > from_pass, "the planted pass was reached"


def test_a_prompt_that_does_not_fit_with_its_response_is_refused_and_one_that_just_fits_is_answered():
    model, rendered = chat_model("qwen3"), prompts([9, 4])
    model.network.config.max_position_embeddings = 12
    assert max(len(r.ids) for r in respond(model, rendered, max_new_tokens=4)) <= 4
    with pytest.raises(UserError, match=r"13 tokens are to be read at once, and qwen3 has positions for 12; .*max_new_tokens"):
        respond(model, rendered, max_new_tokens=5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_with_the_end_of_turn_changes_no_token(architecture):
    model, rendered = chat_model(architecture), prompts([5, 9, 3, 1])
    before = respond(model, rendered, max_new_tokens=10)
    model.tokenizer.pad_token = model.tokenizer.eos_token
    assert model.pad_id in model.end_ids
    assert respond(model, rendered, max_new_tokens=10) == before
    assert respond(model, rendered, max_new_tokens=10, shortcuts=NONE) == before


def test_tokens_that_the_tokenizer_does_not_know_have_no_text_and_keep_their_place():
    """Vocabularies are often rounded up; an edited model may say what has no name."""
    model = chat_model("qwen3", size=VOCAB - 6)
    prompt = prompts([4])[0]
    said = read(model, (7, VOCAB - 1, 8, 1), prompt=prompt)
    assert (said.ids, said.text.split(), said.finished) == ((7, VOCAB - 1, 8, 1), ["w7", "w8"], True)
    assert judge_markers([read(model, (VOCAB - 1, VOCAB - 2, 1), prompt=prompt)]) == ("degenerate",)


def test_no_prompts_no_responses():
    assert respond(chat_model("qwen3"), (), max_new_tokens=4) == ()


# Every prompt, edit and shortcut of these networks must give the tokens of plain `generate`.
TINY = ("llama", "gemma3", "gpt_oss", "qwen3_5", "qwen3_vl")
ORGANISMS = tuple(architectures.ARCHITECTURES)
ENDS = [2, *range(7, 20)]
STRENGTHS = (0.0, 0.5, 1.0, 2.0)
FIXED = replace(Shortcuts(), static_cache=True)


def network_of(name, tiny):
    if name in TINY:
        return tiny(name)
    torch.manual_seed(0)
    size = architectures.Size(layers=3, width=32, hidden=48, heads=4)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    network = architectures.build(name.removeprefix("organism_"), vocabulary=VOCAB, special=special, size=size)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return wrap(network, word_tokenizer(), name=name)


@pytest.mark.parametrize("name", [*TINY, *(f"organism_{a}" for a in ORGANISMS)])
def test_every_arm_with_every_shortcut_and_with_none_says_what_generate_says(tiny, name):
    model = network_of(name, tiny)
    end_with(model, ENDS)
    writers, rendered = find_writers(model), prompts([3, 17, 9, 9, 4, 12, 1, 9])
    vectors = torch.randn(len(model.blocks), 1, model.d_model, generator=torch.Generator().manual_seed(1))
    plans = [make_plan(writers, vectors, torch.full((len(vectors),), strength)) for strength in STRENGTHS]
    drafts, parted, tokens, plainly = Drafts(), [], 0, []
    for plan in plans:
        with applied(model, writers, plan):
            plainly.append([plain(model, prompt, 16) for prompt in rendered])
            tokens += sum(map(len, plainly[-1]))
            for options in ({"shortcuts": NONE}, {"drafts": drafts}, {"drafts": drafts, "batch_tokens": 40}, {"shortcuts": FIXED}):
                said = respond(model, rendered, max_new_tokens=16, **options)
                parted += partings(model, rendered, plainly[-1], [r.ids for r in said])
    together = [(plan, prompt) for plan in plans for prompt in rendered]
    with applied_rows(model, writers, [plan for plan, _ in together]) as rows:
        for shortcuts in (Shortcuts(), FIXED):
            said = respond(model, [prompt for _, prompt in together], max_new_tokens=16, edits=rows, batch_tokens=64, shortcuts=shortcuts)
            assert [r.ids for r in said] == [ids for arm in plainly for ids in arm]
    assert len({ids for arm in plainly for ids in arm}) > len(rendered)  # the edits do change what is said
    assert not [p for p in parted if not p.tie]
    assert len(parted) < tokens / 10_000 + 1


def passes(model):
    """A list that grows by the shape of the tokens fed, one entry a forward pass."""
    seen = []
    model.network.register_forward_pre_hook(lambda _m, _a, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    return seen


def test_known_responses_are_verified_in_one_pass():
    model, rendered = chat_model("qwen3"), prompts([5, 7, 6, 8])
    assert heeds_padding(model, "decoding", tokens=20)  # found out once, in passes of its own
    drafts, seen = Drafts(), passes(model)
    first = respond(model, rendered, max_new_tokens=12, drafts=drafts)
    assert len(seen) == 12
    seen.clear()
    assert respond(model, rendered, max_new_tokens=12, drafts=drafts) == first
    assert seen == [(4, 8), (4, 12)]  # the prompts; the first token of each with the rest of the guess
    seen.clear()
    assert respond(model, rendered, max_new_tokens=12, drafts=drafts, shortcuts=NONE) == first
    assert len(seen) == 12


@pytest.mark.parametrize("good", [0, 1, 5, 10])
def test_wrong_guesses_cost_time_and_change_nothing(good):
    model, rendered = chat_model("qwen3"), prompts([5, 7, 6, 8])
    right = [r.ids for r in respond(model, rendered, max_new_tokens=12)]
    drafts = Drafts()
    for row, (prompt, ids) in enumerate(zip(rendered, right, strict=True)):
        kept = max(1, good - row)
        drafts.learn(prompt, (*ids[:kept], *[(i + 1) % 90 + 5 for i in ids[kept:]]))
    seen = passes(model)
    assert [r.ids for r in respond(model, rendered, max_new_tokens=12, drafts=drafts)] == right
    assert seen[1] == (4, 12)
    assert drafts.share < 1


def test_guesses_stop_where_the_rule_stops():
    model, rendered = chat_model("qwen3"), prompts([5, 7, 6, 8])
    free = respond(model, rendered, max_new_tokens=16)
    marked, drafts = free[1].ids[3], Drafts()
    for prompt, response in zip(rendered, free, strict=True):
        drafts.learn(prompt, response.ids)
    options = {"max_new_tokens": 16, "stop": lambda _prompt, ids: marked in ids}
    seen = passes(model)
    with_drafts = respond(model, rendered, drafts=drafts, **options)
    assert seen[1] == (4, 16)
    assert with_drafts == respond(model, rendered, **options)


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_guesses_are_no_longer_than_the_rule_lets_a_row_be(length):
    model, rendered = chat_model("qwen3"), prompts([5, 7, 6, 8])
    drafts = Drafts()
    for prompt, response in zip(rendered, respond(model, rendered, max_new_tokens=16), strict=True):
        drafts.learn(prompt, response.ids)
    options = {"max_new_tokens": 16, "stop": lambda _prompt, ids: len(ids) == length}
    seen = passes(model)
    found = respond(model, rendered, drafts=drafts, **options)
    assert seen == [(4, 8), (4, length)][: min(length, 2)]
    assert found == respond(model, rendered, **options)
    assert {len(r.ids) for r in found} == {length}


def test_a_batch_that_does_not_fit_is_halved_and_what_is_done_stays_done():
    rendered = prompts([6] * 8, seed=5)
    model = chat_model("llama")
    expected, seen = respond(model, rendered, max_new_tokens=10), passes(model)

    def full(_module, _args, kw):
        if len(kw["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.network.register_forward_pre_hook(full, with_kwargs=True)
    assert respond(model, rendered, max_new_tokens=10) == expected
    handle.remove()
    prefills = [shape for shape in seen if shape[1] == 6]
    assert prefills == [(8, 6), (4, 6), (2, 6), (2, 6), (2, 6), (2, 6)]
    steps = iter(range(1000))

    def late(_module, _args, kw):
        if kw["input_ids"].shape[1] == 1 and next(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.network.register_forward_pre_hook(late, with_kwargs=True)
    seen.clear()
    stop = lambda prompt, ids: prompt in rendered[:2] and len(ids) == 3  # noqa: E731
    assert [len(r.ids) for r in respond(model, rendered, max_new_tokens=10, stop=stop)] == [3, 3] + [10] * 6
    assert [shape for shape in seen if shape[1] == 6] == [(8, 6), (4, 6), (2, 6)]  # the two that had ended are not decoded again


def test_one_prompt_too_large_for_memory_is_named():
    model = chat_model("llama")

    def full(_module, _args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.network.register_forward_pre_hook(full)
    with pytest.raises(UserError, match="One prompt of 9 tokens does not fit into the memory"):
        respond(model, prompts([9, 4]), max_new_tokens=4)
    model = chat_model("llama")
    model.network.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        respond(model, prompts([9, 4]), max_new_tokens=4)
