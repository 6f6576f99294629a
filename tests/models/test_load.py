import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from resect.errors import UserError
from resect.models import source as sources
from resect.models.batches import batches
from resect.models.chat import render
from resect.models.load import find_blocks, load_model, wrap

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TEXT |= {"vocab_size": 300, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 258, "tie_word_embeddings": True}
VISION = {"depth": 3, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16}
VISION |= {"deepstack_visual_indexes": [0, 1, 2], "patch_size": 4}


def byte_tokenizer(**special):
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    extra = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=extra, chat_template=TEMPLATE, **special)


def qwen3(**changes):
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT | changes))


def qwen3_vl():
    torch.manual_seed(0)
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=VISION, tie_word_embeddings=True)
    return transformers.Qwen3VLForConditionalGeneration(config)


def mistral3():
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 4,
        "image_size": 16,
    }
    config = transformers.Mistral3Config(
        text_config=TEXT | {"model_type": "mistral"}, vision_config=vision | {"model_type": "pixtral"}, image_token_index=5
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def qwen3_5():
    torch.manual_seed(0)
    changes = {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    changes |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    return transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**TEXT | changes))


MODELS = {
    "qwen3": (qwen3, "model.layers"),
    "qwen3_vl": (qwen3_vl, "model.language_model.layers"),
    "mistral3": (mistral3, "model.language_model.layers"),
    "qwen3_5": (qwen3_5, "model.layers"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, (build, _) in MODELS.items():
        made[name] = tmp_path_factory.mktemp(name)
        build().save_pretrained(made[name])
        byte_tokenizer().save_pretrained(made[name])
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A private copy of the Qwen3 folder, to break."""
    for path in folders["qwen3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_loaded_model_equals_the_one_saved(folders, name):
    build, where = MODELS[name]
    network = build().eval()
    model = load_model(folders[name])
    assert type(model.network) is type(network)
    assert model.block_names == tuple(f"{where}.{i}" for i in range(3))
    assert model.blocks[2] is model.network.get_submodule(f"{where}.2")
    assert model.d_model == 32
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    batch = next(batches(render(model.tokenizer, ["hello"]), pad_id=model.pad_id))
    with torch.no_grad():
        expected = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        got = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.equal(got, expected)
    assert model.fingerprint == wrap(network, byte_tokenizer(), name="memory").fingerprint


def test_fingerprint_changes_with_any_tensor_and_with_the_config():
    base = wrap(qwen3(), byte_tokenizer(), name="a").fingerprint
    assert wrap(qwen3(), byte_tokenizer(), name="b").fingerprint == base
    assert wrap(qwen3(rms_norm_eps=1e-5), byte_tokenizer(), name="c").fingerprint != base
    for name in ("model.norm.weight", "model.layers.1.self_attn.o_proj.weight"):
        other = qwen3()
        with torch.no_grad():
            other.get_parameter(name).view(-1)[0] += 1e-3
        assert wrap(other, byte_tokenizer(), name="d").fingerprint != base
    assert wrap(qwen3().bfloat16(), byte_tokenizer(), name="e").fingerprint != base


def test_end_ids_join_generation_config_and_tokenizer():
    network = qwen3()
    network.generation_config.eos_token_id = [3, 258]
    model = wrap(network, byte_tokenizer(eos_token="<|im_end|>"), name="a")
    assert model.end_ids == {3, 258, model.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    network.generation_config.eos_token_id = 4
    assert wrap(network, byte_tokenizer(), name="a").end_ids == {4}


@pytest.mark.parametrize(
    ("special", "token"), [({"eos_token": "<|im_end|>"}, "<|im_end|>"), ({"unk_token": "A"}, "A"), ({"pad_token": "B"}, "B")]
)
def test_a_tokenizer_without_pad_token_is_left_alone(special, token):
    tokenizer = byte_tokenizer(**special)
    model = wrap(qwen3(), tokenizer, name="a")
    assert model.pad_id == tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.pad_token == special.get("pad_token")
    assert any("no pad token" in note for note in model.notes) == ("pad_token" not in special)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtype(folders, dtype, expected):
    assert {p.dtype for p in load_model(folders["qwen3"], dtype=dtype, device="cpu").network.parameters()} == {expected}


def test_unknown_dtype_and_device_name_the_nearest(folders):
    with pytest.raises(UserError, match=r"Unknown dtype 'bfloat'; did you mean 'bfloat16'"):
        load_model(folders["qwen3"], dtype="bfloat")
    with pytest.raises(UserError, match=r"Unknown device 'cdua'; did you mean 'cuda'"):
        load_model(folders["qwen3"], device="cdua")
    with pytest.raises(UserError, match=r"'cuda:99' was asked for, but this machine has"):
        load_model(folders["qwen3"], device="cuda:99")


def test_places_that_are_no_model(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"There is no model folder ./nowhere"):
        load_model("./nowhere")
    with pytest.raises(UserError, match=r"is not a model folder: it has no config.json"):
        load_model(empty)
    with pytest.raises(UserError, match=r"is a file, not a model folder"):
        load_model(folder / "config.json")
    with pytest.raises(UserError, match=r"Revision 'main' was asked for, but .* is a local folder"):
        load_model(folder, revision="main")


def test_only_safetensors_are_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no .safetensors weights \(found pytorch_model.bin\)"):
        load_model(folder)


def test_broken_config_and_weights(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:200])
    with pytest.raises(UserError, match=r"The weights of .* cannot be read"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"The configuration of .* cannot be read"):
        load_model(folder)


def test_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(UserError, match=r"T5Model is neither a causal language model nor"):
        load_model(folder)


def test_incomplete_weights_are_refused_not_initialised(folder):
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.up_proj.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 parameters are missing and 0 have another shape, the first is model.layers.1.mlp.up_proj.weight"
    ):
        load_model(folder)
    save_file(kept | {"model.layers.1.mlp.up_proj.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"0 parameters are missing and 1 have another shape"):
        load_model(folder)


def test_unread_tensors_are_noted(folder):
    tensors = load_file(folder / "model.safetensors") | {"model.extra.weight": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert any("the first is model.extra.weight" in note for note in load_model(folder).notes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_name(bad):
    network = qwen3()
    with torch.no_grad():
        network.get_parameter("model.layers.2.mlp.down_proj.weight")[0, :3] = bad
    with pytest.raises(UserError, match=r"Parameter model.layers.2.mlp.down_proj.weight of a holds NaN or infinity in 3 of 1536"):
        wrap(network, byte_tokenizer(), name="a")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a\\..\\b.safetensors"])
def test_an_index_that_points_outside_is_refused(folder, shard):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(UserError, match=r"points outside the model folder .* unsafe"):
        load_model(folder)


def test_broken_indexes_are_refused(folder):
    index = folder / "model.safetensors.index.json"
    for text, message in (
        ('{"weight_map": {"x": "gone.safetensors"}}', "names the file gone.safetensors, which is missing"),
        ("{}", "has no weight_map"),
        ("[]", "must hold a JSON object, found list"),
        ("{", "is not JSON"),
    ):
        index.write_text(text)
        with pytest.raises(UserError, match=message):
            load_model(folder)


def test_no_chat_template_and_no_tokenizer(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=re.escape(f"The tokenizer of {folder} has no chat template")):
        load_model(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    model = load_model(folder)
    assert model.tokenizer.chat_template == TEMPLATE
    assert any("processor's" in note for note in model.notes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"The tokenizer of .* has no vocabulary"):
        load_model(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"The tokenizer of .* cannot be read"):
        load_model(folder)


def test_a_list_of_blocks_far_inside_a_tower_does_not_count():
    network = qwen3()
    network.model.tower = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))})
    assert find_blocks(network) == tuple(f"model.layers.{i}" for i in range(3))


def test_a_network_without_a_number_of_blocks_is_refused(monkeypatch):
    network = qwen3()
    monkeypatch.setattr(type(network.config), "get_text_config", lambda *_, **__: transformers.PreTrainedConfig())
    with pytest.raises(UserError, match="does not say how many layers"):
        find_blocks(network)


def test_ambiguous_blocks_are_refused_with_the_candidates():
    network = qwen3()
    network.model.more = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
    with pytest.raises(UserError, match=r"candidates: model.layers, model.more"):
        wrap(network, byte_tokenizer(), name="a")
    network = qwen3()
    network.model.layers = network.model.layers[:2]
    with pytest.raises(UserError, match=r"candidates: none; all module lists: model.layers \(2\)"):
        wrap(network, byte_tokenizer(), name="a")


def test_lists_of_leaves_and_inner_lists_are_no_blocks():
    network = qwen3()
    network.model.scales = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    network.model.layers[0].inner = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
    assert wrap(network, byte_tokenizer(), name="a").block_names[0] == "model.layers.0"


def test_hub_ids_go_to_the_hub_and_come_back_as_one_sentence(monkeypatch):
    def refuse(name, **_):
        raise OSError(f"We couldn't connect to load {name}\nsecond line")

    monkeypatch.setattr(sources.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"The configuration of owner/name cannot be read or found on the Hub: We couldn't connect to load owner/name$"
    ):
        load_model("owner/name")


@pytest.mark.parametrize(
    ("kind", "architecture", "expected"),
    [
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", True),
        ("qwen3_5", "Qwen3_5ForCausalLM", False),
        ("llama4", "Llama4ForConditionalGeneration", True),
        ("qwen3_vl", None, True),
        ("qwen3", None, False),
    ],
)
def test_the_class_that_holds_the_weights_is_chosen(kind, architecture, expected):
    config = transformers.AutoConfig.for_model(kind)
    config.architectures = [architecture] if architecture else None
    assert sources.is_vision_language(config) is expected


def test_the_context_is_what_the_configuration_says_and_stretched_positions_count(tiny):
    model = tiny("qwen3")
    config = model.network.config
    assert model.context == 256
    model.check_length(256)
    with pytest.raises(UserError, match="257 tokens are to be read at once, and qwen3 has positions for 256"):
        model.check_length(257)
    config.rope_parameters = config.rope_parameters | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert model.context == 1024
    assert (tiny("gpt2").context, tiny("gemma3").context, tiny("gemma3_vl").context, tiny("bloom").context) == (256, 256, 256, None)
