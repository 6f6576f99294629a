"""Every mistake that the user can make is told in one line, with exit code 2 and nothing on standard output."""

import errno
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from resect import artifacts
from resect.prompts import load_prompts, split_by_hash
from resect.studies.inputs import SHARES

SETTINGS = ("extract_prompts=16", "validation_prompts=8", "test_prompts=8", "max_new_tokens=32", "gamma_rule='flat'")


def write(path, start, count=80):
    path.write_text("".join(json.dumps({"text": f"{start} number {i}"}) + "\n" for i in range(count)))
    return path


@pytest.fixture
def sides(tmp_path):
    return write(tmp_path / "harmful.jsonl", "Make weapon"), write(tmp_path / "harmless.jsonl", "Bake cake")


@pytest.fixture(scope="module")
def atoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atoms")
    for name, role in (("deception", "target"), ("coding", "shield")):
        lines = [f"{side} = {json.dumps([f'{name} {side} {i}' for i in range(2)])}" for side in ("positive", "negative")]
        (folder / f"{name}.toml").write_text("\n".join(['format = "resect.atom/1"', f'name = "{name}"', f'role = "{role}"', *lines]))
    return folder


def save(model, folder):
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A folder of a tiny random model."""
    return save(tiny("qwen3"), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def study(sides, atoms, tmp_path):
    """A function: the arguments of a study of a model folder."""

    def arguments(folder, *, harmful=sides[0], harmless=sides[1]):
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        files = ("--harmful", harmful, "--harmless", harmless, "--atoms", atoms)
        return ("sra", folder, *files, "--out", tmp_path / "run", *settings)

    return arguments


def test_missing_prompt_files(model, study, refuses, tmp_path):
    missing = tmp_path / "none.jsonl"
    message = f"There is no prompt file {missing}; give an existing file or a Hub id such as owner/name:split:column."
    refuses(*study(model, harmful=missing), message=message)
    message = "--harmless is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column."
    refuses("sra", model, "--harmful", tmp_path / "harmful.jsonl", message=message)
    assert not (tmp_path / "run").exists()


def test_an_empty_prompt_file(model, study, refuses, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refuses(*study(model, harmful=empty), message=f"{empty} holds no prompts; give a file with at least one.")


def test_a_malformed_line(model, study, refuses, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": fine}\n')
    message = f"{broken}, line 2: not valid JSON (Expecting value at column 10); every line must hold one JSON object."
    refuses(*study(model, harmless=broken), message=message)


def test_a_missing_column(model, study, refuses, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"words": "fine"}\n')
    message = f"{other}, line 1: no column for the text was found among words; name one, or call it 'text'."
    refuses(*study(model, harmful=other), message=message)


def test_too_few_prompts(model, study, refuses, tmp_path):
    few = write(tmp_path / "few.jsonl", "Make", 14)
    parts = split_by_hash(load_prompts(few, name="harmful"), SHARES, seed=0)
    name, part = next((name, part) for name, part in parts.items() if len(part) < 8)
    message = f"Only {len(part)} harmful prompts fall to {name}; at least 8 are needed, give a larger file."
    refuses(*study(model, harmful=few), message=message)


def test_overlapping_sides(model, study, sides, refuses, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_text(sides[1].read_text() + sides[0].read_text().splitlines()[3])
    key = load_prompts(sides[0]).prompts[3].key
    message = (
        f"Prompt sets 'harmful' and 'harmless' share 1 prompts (the first has key {key}), and they must be disjoint; "
        "remove the prompts from one of the sets."
    )
    refuses(*study(model, harmless=both), message=message)


def test_a_tokenizer_without_chat_template(tiny, study, refuses, tmp_path):
    built = tiny("qwen3")
    built.tokenizer.chat_template = None
    folder = save(built, tmp_path / "base")
    message = (
        f'The tokenizer of {folder} has no chat template (no chat_template.jinja, nothing under "chat_template" in tokenizer_config.json); '
        "use the chat-tuned version, or add a chat_template.jinja: base models need one."
    )
    refuses(*study(folder), message=message)


def test_a_model_that_refuses_nothing(model, study, refuses, tmp_path):
    message = (
        "The base model refuses none of the 32 harmful prompts, so there is no refusal to find; use prompts that it refuses, or check the "
        "chat template and the system prompt."
    )
    refuses(*study(model), message=message)
    # Nothing is lost: the answers so far stay, and no edit was tried.
    assert len(list((tmp_path / "run" / "steps").glob("base_*.json"))) == 6
    assert not list((tmp_path / "run").rglob("selection_*"))


def test_a_model_that_refuses_everything_and_has_no_pad_token(plain, teach, study, sides, refuses, resect, tmp_path):
    built = plain("qwen3")
    teach(built, {"I cannot help.": [p for path in sides for p in load_prompts(path).prompts]}, steps=60)
    built.tokenizer.pad_token = None
    folder = save(built, tmp_path / "refuser")
    said = resect("inspect", folder, "--json")
    assert any("no pad token" in note for note in said.json["notes"])
    message = (
        "The base model refuses all of the 32 harmless prompts, so refusal has nothing to stand out from; use prompts that it answers, or "
        "check the chat template and the system prompt."
    )
    refuses(*study(folder), message=message)


def test_weights_with_nan(tiny, study, refuses, tmp_path):
    built = tiny("qwen3")
    with torch.no_grad():
        built.network.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    folder = save(built, tmp_path / "nan")
    message = (
        f"Parameter model.layers.1.mlp.down_proj.weight of {folder} holds NaN or infinity in 1 of 1280 values, and nothing can be measured "
        "with it; get the checkpoint again, or load it in a wider dtype."
    )
    refuses(*study(folder), message=message)


def test_activations_that_overflow(tiny, study, refuses, tmp_path):
    built = tiny("qwen3")
    with torch.no_grad():
        built.network.model.layers[1].mlp.down_proj.weight.sign_().mul_(3e38)
    folder = save(built, tmp_path / "huge")
    message = (
        "Block model.layers.1 (Qwen3DecoderLayer) puts out NaN or infinity for ordinary tokens, even in float32; nothing can be measured "
        "with such weights, get the checkpoint again."
    )
    refuses(*study(folder), message=message)


def test_a_folder_with_another_run_in_it(staged, resect, refuses, small):
    run = staged[0]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    message = f"The folder {run} holds another run (seed was 0, now 3); choose another --out, or remove it."
    # The seed also changes the splits, so that the inputs differ first.
    outcome = resect("demo", "--out", run, *small, "--set", "seed=3")
    assert outcome.code == 2
    assert outcome.out == ""
    assert f"The folder {run} holds another run (" in outcome.err
    message = f"The folder {run} holds another run (passes was 2, now 3); choose another --out, or remove it."
    refuses("demo", "--out", run, *small, "--set", "passes=3", message=message)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_or_file_that_is_no_run(refuses, small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    message = f"The folder {tmp_path / 'mine'} is not empty and holds no run; choose another --out."
    refuses("demo", "--out", tmp_path / "mine", *small, message=message)
    message = f"The output path {tmp_path / 'mine' / 'thesis.txt'} is a file; name a folder for the run."
    refuses("demo", "--out", tmp_path / "mine" / "thesis.txt", *small, message=message)


def test_a_full_disk(staged, refuses, monkeypatch, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    message = f"{run / 'directions.safetensors'} cannot be written: No space left on device; free some space or choose another folder."
    refuses("directions", run, message=message)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_write_that_the_system_cuts_short(staged, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    wanted = (run / "cleaning.safetensors").read_bytes()
    (run / "cleaning.safetensors").unlink()
    command = [sys.executable, "-c", "from resect.cli import main; main()", "cleaning", str(run)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    path = run / "cleaning.safetensors"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {path} cannot be written: File too large; free some space or choose another folder.\n"
    assert not path.exists()
    assert not list(run.rglob("*.tmp"))
    assert len(wanted) > 1000


def test_organisms_bring_their_own_prompts(refuses, sides):
    message = "An organism brings its own prompts and atoms; leave out the prompt files, --atoms, --questions and --text."
    refuses("sra", "default", "--harmful", sides[0], message=message)


def test_missing_models(refuses, sides, tmp_path):
    message = f"There is no model folder {tmp_path / 'none'}; give an existing folder or a Hub id such as owner/name."
    refuses("sra", tmp_path / "none", "--harmful", sides[0], "--harmless", sides[1], message=message)
    refuses("inspect", tmp_path / "none", message=message)
