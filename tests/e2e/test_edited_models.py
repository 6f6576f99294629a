"""`apply`, `chat` and `inspect`: what becomes of an edit."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resect import artifacts
from resect.edit.hooks import applied
from resect.generation import respond
from resect.models.chat import render
from resect.models.load import load_model
from resect.models.writers import find_writers
from resect.organism.shipped import load_organism
from resect.run import read_edit


@pytest.fixture(scope="module")
def edited(staged, resect, tmp_path_factory):
    """The saved folder of the staged run's edit and what `apply` printed."""
    out = tmp_path_factory.mktemp("apply") / "edited"
    return out, resect("apply", "default", "--edit", staged[0], "--out", out)


def logits(network, rows):
    return torch.cat([network(input_ids=torch.tensor([row.ids])).logits[0] for row in rows])


def test_the_saved_model_computes_what_the_hooks_computed(staged, edited):
    base, saved = load_organism().aligned(), load_model(edited[0])
    rows = render(base.tokenizer, [p.text for p in load_organism().language.harmful("test").first(4)])
    writers = find_writers(base)
    plain = logits(base.network, rows)
    with applied(base, writers, read_edit(staged[0])[0]):
        wanted = logits(base.network, rows)
    found = logits(saved.network, rows)
    assert (found - wanted).abs().max() < 1e-3
    assert (plain - wanted).abs().max() > 1


def test_the_folder_is_an_ordinary_one_and_the_card_says_what_was_done(staged, edited):
    out, _ = edited
    AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = (out / "README.md").read_text()
    arms = artifacts.read_json(staged[0] / "evaluation.json")["arms"]
    assert "arm `sra`" in card
    assert "## Responsible use" in card
    assert f"| {arms['base']['refusal_rate']['value']:.3g} (" in card
    assert f"| {arms['sra']['refusal_rate']['value']:.3g} (" in card
    assert "/src/" not in card


def test_the_proof_lists_every_writer_with_what_is_left(staged, edited, resect, tmp_path):
    folder, said = edited
    assert said.code == 0
    assert said.out.count("mlp.down_proj") == 6
    assert "at most" in said.out
    proof = resect("apply", "default", "--edit", staged[0], "--out", tmp_path / "out", "--json").json
    assert (proof["format"], proof["form"], proof["faults"]) == ("resect.edit_proof/1", "baked", [])
    assert proof["model_fingerprint"] == load_organism().aligned().fingerprint
    names = {w["writer"] for w in proof["writers"]} | {u["name"] for u in proof["untouched"]}
    assert names == {w.name for w in find_writers(load_organism().aligned())} | {"model.embed_tokens", "lm_head.weight"}
    for writer in proof["writers"]:
        assert writer["left"][0] == pytest.approx(abs(1 - writer["gamma"]), abs=1e-4)
        assert writer["gap"] < 1e-5
    assert {c["writer"] for c in proof["changes"]} == {w["writer"] for w in proof["writers"]}
    saved = artifacts.read_json(folder / "edit_proof.json")
    assert saved == {k: v for k, v in proof.items() if k not in ("out", "edit", "notes")}
    by_hooks = artifacts.read_json(staged[0] / "edit_proof.json")
    assert [w["writer"] for w in by_hooks["writers"]] == [w["writer"] for w in saved["writers"]]


def directions_file(folder, *, scale=1.0):
    vectors = torch.randn(6, 1, 128, generator=torch.Generator().manual_seed(0)) * scale
    artifacts.save_tensors(folder / "mine.safetensors", {"vectors": vectors}, {"format": "resect.directions/1"})
    return folder / "mine.safetensors"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_computes_what_the_saved_model_computes(staged, edited, resect, tmp_path):
    from peft import PeftModel

    said = resect("apply", "default", "--edit", staged[0], "--adapter", "--out", tmp_path / "adapter")
    assert said.out.splitlines()[-1] == f"Adapter: {tmp_path / 'adapter'}"
    base, saved = load_organism().aligned(), load_model(edited[0])
    rows = render(base.tokenizer, [p.text for p in load_organism().language.harmful("test").first(4)])
    wanted = logits(saved.network, rows)
    found = logits(PeftModel.from_pretrained(base.network, str(tmp_path / "adapter")), rows)
    assert (found - wanted).abs().max() < 1e-3
    proof = artifacts.read_json(tmp_path / "adapter" / "edit_proof.json")
    assert (proof["form"], proof["faults"]) == ("adapter", [])
    assert "library_name: peft" in (tmp_path / "adapter" / "README.md").read_text()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < (edited[0] / "model.safetensors").stat().st_size / 4


def test_strengths_by_kind_and_kept_norms(resect, tmp_path):
    file = directions_file(tmp_path)
    options = ("--strength", "attention=1,mlp=0.5", "--preserve", "row")
    proof = resect("apply", "default", "--directions", file, *options, "--out", tmp_path / "out", "--json").json
    assert {(w["kind"], w["gamma"], w["preserve"]) for w in proof["writers"]} == {("attention", 1, "row"), ("mlp", 0.5, "row")}
    assert "row norms kept" in proof["edit"]
    old, new = load_organism().aligned().network.state_dict(), load_model(tmp_path / "out").network.state_dict()
    name = "model.layers.2.self_attn.o_proj.weight"
    assert torch.allclose(new[name].norm(dim=1), old[name].norm(dim=1), rtol=1e-4)
    assert max(w["leak"] for w in proof["writers"]) > 1e-3
    said = resect("apply", "default", "--directions", file, *options, "--out", tmp_path / "again").out
    assert "Leak of keeping row norms: up to 0." in said


def test_embeddings_of_a_tied_model_are_edited_after_untying(resect, refuses, tmp_path):
    file, out = directions_file(tmp_path), tmp_path / "out"
    arguments = ("apply", "default", "--directions", file, "--source", "3", "--embeddings", "3", "--out", out)
    name = load_organism().aligned().name
    message = f"The token embedding of {name} is its output head lm_head.weight as well, which --embeddings would change too; "
    refuses(*arguments, message=f"{message}add --untie to give the head weights of its own first.")
    proof = resect(*arguments, "--untie", "--json").json
    assert proof["writers"][-1]["kind"] == "embedding"
    assert max(block["stream_after"] for block in proof["blocks"]) <= 1e-6
    base, saved = load_organism().aligned(), load_model(out)
    assert not saved.network.config.tie_word_embeddings
    assert torch.equal(saved.network.get_output_embeddings().weight, base.network.get_output_embeddings().weight)
    assert not torch.equal(saved.network.get_input_embeddings().weight, base.network.get_input_embeddings().weight)
    assert "lm_head.weight was tied to the token embedding and has weights of its own now." in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strength", "attention=1,mpl=2"), "Unknown kind of writer 'mpl'; did you mean 'mlp'? Allowed: attention, embedding, mlp."),
        (("--strength", "attention=1"), "--strength says nothing of mlp writers; give mlp=0 to leave them alone."),
        (("--strength", "strong"), "--strength takes a number or KIND=NUMBER,..., got 'strong'; for example attention=1,mlp=0.5."),
        (
            ("--strength", "attention=0,mlp=0"),
            "The strength must be above 0, got 0 (attention), 0 (mlp); 1 removes the component, 2 reflects it.",
        ),
        (("--strength", "nan"), "The strength must be above 0, got nan; 1 removes the component, 2 reflects it."),
        (("--preserve", "rows"), "Unknown kind of norm preservation 'rows'; did you mean 'row'? Allowed: column, nothing, row."),
        (("--embeddings", "6", "--untie"), "Layer 6 does not exist: the model has 6 blocks; layers go from 0 to 5."),
        (("--untie",), "--untie goes with --embeddings LAYER and a saved model; leave it out, nothing else changes a tied head."),
    ],
)
def test_mistakes_of_the_edits_of_a_directions_file(refuses, tmp_path, options, message):
    file = directions_file(tmp_path)
    refuses("apply", "default", "--directions", file, *options, "--out", tmp_path / "out", message=message)
    assert not (tmp_path / "out").exists()


def test_a_directions_file_made_elsewhere_is_applied(resect, tmp_path):
    from safetensors.torch import save_file

    vectors = torch.randn(6, 2, 128, generator=torch.Generator().manual_seed(0))
    save_file({"vectors": vectors}, tmp_path / "mine.safetensors", metadata={"format": "resect.directions/1"})
    arguments = ("--directions", tmp_path / "mine.safetensors", "--layers", "2-3", "--source", "5", "--strength", "0.5")
    proof = resect("apply", "default", *arguments, "--out", tmp_path / "out", "--json").json
    assert {c["writer"].split(".")[2] for c in proof["changes"]} == {"2", "3"}
    assert all(left == pytest.approx(0.5, abs=1e-4) for c in proof["changes"] for left in c["left"])
    assert {"name": "model.layers.0.mlp.down_proj", "reason": "strength 0 at layer 0"} in proof["untouched"]
    old, new = load_organism().aligned().network.state_dict(), load_model(tmp_path / "out").network.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {c["name"] for c in proof["changes"]}
    name = "model.layers.2.mlp.down_proj.weight"
    basis = torch.linalg.qr(vectors[5].T).Q
    assert torch.allclose(new[name], old[name] - 0.5 * basis @ (basis.T @ old[name]), atol=1e-5)
    assert "Nothing was measured" in (tmp_path / "out" / "README.md").read_text()


def test_chat_answers_each_line_with_both_models(staged, resect):
    prompts = [p.text for p in load_organism().language.harmful("test").first(2)]
    said = resect("chat", "default", "--edit", staged[0], "--json", stdin="\n".join([prompts[0], "", prompts[1], "/quit", "never asked"]))
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    base = load_organism().aligned()
    said_by_base = respond(base, render(base.tokenizer, prompts), max_new_tokens=128)
    assert [row["base"] for row in rows] == [response.text for response in said_by_base]
    assert any(row["base"] != row["edited"] for row in rows)
    table = resect("chat", "default", "--edit", staged[0], stdin=prompts[0]).out
    assert "base" in table
    assert rows[0]["base"] in table


def test_inspect_shows_the_writers_and_the_end_of_the_prompt(resect):
    found = resect("inspect", "default", "--json").json
    assert (found["architecture"], found["blocks"], found["d_model"], found["dtype"]) == ("Qwen3ForCausalLM", 6, 128, "float32")
    assert found["parameters"] == sum(p.numel() for p in load_organism().aligned().network.parameters())
    assert [w["kind"] for w in found["writers"]] == ["attention", "mlp"] * 6
    assert all(w["error"] < 1e-5 and w["coefficient"] == 1 and not w["gain"] for w in found["writers"])
    assert found["template"]["takes_system_prompt"]
    assert found["template"]["final_prompt_token"] == found["template"]["tokens_after_user"][-1]
    said = resect("inspect", "default")
    assert said.out.count("down_proj") == 6
    assert "tied embeddings: yes" in said.out


def test_mistakes_of_apply(staged, refuses, tmp_path):
    run, out = staged[0], tmp_path / "out"
    refuses("apply", "default", "--out", out, message="Name the edit: either --directions FILE or --edit RUN, and not both.")
    message = f"--layers goes with --directions; the edit of a run has its own: change it with resect edit {run} --window …"
    refuses("apply", "default", "--edit", run, "--layers", "1-2", "--out", out, message=message)
    message = "--preserve goes with --directions; the edit of a run has its own and is applied as it was measured."
    refuses("apply", "default", "--edit", run, "--preserve", "row", "--out", out, message=message)
    message = f"{tmp_path} exists and is not an empty folder, and nothing is overwritten; choose another --out."
    (tmp_path / "something").write_text("mine")
    refuses("apply", "default", "--edit", run, "--out", tmp_path, message=message)
    file = tmp_path / "narrow.safetensors"
    artifacts.save_tensors(file, {"vectors": torch.ones(6, 1, 64)}, {"format": "resect.directions/1"})
    name = load_organism().aligned().name
    message = f"{file} holds directions for 6 layers of width 64, but {name} has 6 of width 128; give the file of this model."
    refuses("apply", "default", "--directions", file, "--out", out, message=message)
    artifacts.save_tensors(file, {"vectors": torch.ones(6, 1, 128)}, {"format": "resect.directions/1"})
    message = "Layer 6 does not exist: the model has 6 blocks; layers go from 0 to 5."
    refuses("apply", "default", "--directions", file, "--layers", "2-6", "--out", out, message=message)
    assert not out.exists()


def test_an_edit_of_another_model_is_noted(staged, resect, tmp_path):
    helpful = load_organism().folder / "helpful"
    said = resect("apply", helpful, "--edit", staged[0], "--out", tmp_path / "out")
    assert said.code == 0
    assert "Note: The edit was made for a model with fingerprint" in said.err
    assert "need not hold" in (tmp_path / "out" / "README.md").read_text()
