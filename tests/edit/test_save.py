import errno

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, ShieldGemma2Config

from resect.edit.bake import bake
from resect.edit.plan import make_plan
from resect.edit.save import save_edited
from resect.errors import UserError
from resect.models.load import load_model, wrap
from resect.models.writers import find_writers

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(network):
    return network(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "qwen3_moe"])
def test_an_ordinary_folder_with_the_same_model(tiny, tmp_path, name):
    model = tiny(name)
    writers = find_writers(model)
    bake(model, writers, make_plan(writers, torch.randn(2, 1, 32), torch.ones(2)))
    (tmp_path / "out").mkdir()
    save_edited(model, tmp_path / "out", card="# Edited\n")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (tmp_path / "out" / "README.md").read_text() == "# Edited\n"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model.network))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == model.tokenizer.chat_template
    assert load_model(tmp_path / "out", device="cpu").block_names == model.block_names


def test_names_that_would_not_be_read_back_are_not_written(tiny, tmp_path):
    """transformers gives this class the old names of another one, and loses nearly all of what it then reads."""
    config = ShieldGemma2Config(**{k: v for k, v in tiny("gemma3_vl").network.config.to_dict().items() if k != "model_type"})
    torch.manual_seed(0)
    model = wrap(AutoModelForImageTextToText.from_config(config), tiny("gemma3_vl").tokenizer, name="")
    save_edited(model, tmp_path / "out", card="")
    assert load_model(tmp_path / "out", device="cpu").fingerprint == model.fingerprint


def test_what_cannot_be_written_readably_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("resect.edit.save.unmade", lambda *_: ["model.norm.weight"])
    with pytest.raises(UserError, match=r"cannot be saved so that it is read back: model.norm.weight would be lost"):
        save_edited(tiny("qwen3"), tmp_path / "out", card="")
    assert list(tmp_path.iterdir()) == []


def test_processor_files_come_along_and_others_do_not(tiny, tmp_path):
    source = tmp_path / "source"
    save_edited(tiny("qwen3_vl"), source, card="")
    (source / "preprocessor_config.json").write_text('{"size": 1}')
    (source / "notes.txt").write_text("private")
    save_edited(load_model(source, device="cpu"), tmp_path / "out", card="")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 1}'
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_nothing_is_overwritten(tiny, tmp_path):
    model = tiny("qwen3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    with pytest.raises(UserError, match="full exists and is not empty"):
        save_edited(model, tmp_path / "full", card="")
    with pytest.raises(UserError, match="kept exists and is not a folder"):
        save_edited(model, tmp_path / "full" / "kept", card="")
    assert [p.read_text() for p in (tmp_path / "full").iterdir()] == ["kept"]


def test_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch):
    model = tiny("qwen3")

    def full(folder, **_options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model.network, "save_pretrained", full)
    with pytest.raises(UserError, match=r"cannot be saved to .*out: .*No space left on device"):
        save_edited(model, tmp_path / "out", card="")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_cleared(tiny, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale.safetensors").write_bytes(b"half")
    save_edited(tiny("qwen3"), tmp_path / "out", card="")
    assert not (tmp_path / "out" / "stale.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be saved"):
        save_edited(tiny("qwen3"), tmp_path / "file" / "out", card="")


def test_tied_embeddings_survive(tiny, tmp_path):
    model = tiny("gemma3")
    assert model.network.get_input_embeddings().weight is model.network.get_output_embeddings().weight
    save_edited(model, tmp_path / "out", card="")
    again = load_model(tmp_path / "out", device="cpu")
    assert wrap(again.network, again.tokenizer, name="x").fingerprint == model.fingerprint
