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

from resect.errors import UserError
from resect.generation import Response, read, respond
from resect.models.chat import Rendered
from resect.models.load import wrap

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
    got = respond(model, rendered, max_new_tokens=16, stop=lambda ids: marked in ids)
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
    respond(model, rendered, max_new_tokens=10, stop=lambda ids: ids != keep[: len(ids)])
    assert sizes[0] == 8
    assert sizes[-1] < 8
    assert len(sizes) == 10
    sizes.clear()
    respond(model, rendered, max_new_tokens=10, stop=lambda ids: len(ids) == 2)
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
    with torch.no_grad():
        model.network.lm_head.weight[3] = float("nan")
    with pytest.raises(UserError, match="logits of qwen3 hold NaN"):
        respond(model, rendered, max_new_tokens=4)


def test_no_prompts_no_responses():
    assert respond(chat_model("qwen3"), (), max_new_tokens=4) == ()
