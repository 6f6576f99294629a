"""Every mistake that the user can make is told in one line, with exit code 2 and nothing on standard output."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from resect import artifacts, run
from resect.models.load import wrap


def prompts(path, count=60, *, start="Tell me about item", **extra):
    path.write_text("".join(json.dumps({"text": f"{start} {i}", **extra}) + "\n" for i in range(count)))
    return path


@pytest.fixture
def sides(tmp_path):
    return prompts(tmp_path / "harmful.jsonl", start="Make weapon"), prompts(tmp_path / "harmless.jsonl", start="Bake cake")


@pytest.fixture(scope="module")
def atom(tmp_path_factory):
    path = tmp_path_factory.mktemp("atoms") / "atoms"
    path.mkdir()
    for name, role in (("deception", "target"), ("coding", "shield")):
        rows = {side: [f"{name} {side} {i}" for i in range(2)] for side in ("positive", "negative")}
        lines = [f"{side} = {json.dumps(texts)}" for side, texts in rows.items()]
        (path / f"{name}.toml").write_text("\n".join(['format = "resect.atom/1"', f'name = "{name}"', f'role = "{role}"', *lines]))
    return path


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    built = tiny("qwen3")
    built.network.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    return folder


def bias(built, text):
    """Make the model say one thing whatever it is asked: each token brings the next."""
    ids = [*built.tokenizer(text, add_special_tokens=False)["input_ids"], built.tokenizer.eos_token_id]
    return ids


def test_missing_and_empty_prompt_files(model, sides, refuses, tmp_path):
    missing, out = tmp_path / "none.jsonl", tmp_path / "run"
    message = f"There is no prompt file {missing}; give an existing file or a Hub id such as owner/name:split:column."
    refuses("sra", model, "--harmful", missing, "--harmless", sides[1], "--out", out, message=message)
    message = "--harmless is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column."
    refuses("sra", model, "--harmful", sides[0], "--out", out, message=message)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    message = f"{empty} holds no prompts; give a file with at least one."
    refuses("sra", model, "--harmful", empty, "--harmless", sides[1], "--out", out, message=message)
    assert not out.exists()


def test_malformed_lines_and_missing_columns(model, sides, refuses, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": "not closed}\n')
    message = f"{broken}, line 2: not valid JSON (Unterminated string starting at at column 10); every line must hold one JSON object."
    refuses("sra", model, "--harmful", broken, "--harmless", sides[1], message=message)
    other = tmp_path / "other.jsonl"
    other.write_text('{"words": "fine"}\n')
    message = f"{other}, line 1: no column for the text was found among words; name one, or call it 'text'."
    refuses("sra", model, "--harmful", other, "--harmless", sides[1], message=message)


def test_too_few_prompts(model, sides, atom, refuses, tmp_path):
    few = prompts(tmp_path / "few.jsonl", 12, start="Short")
    out = tmp_path / "run"
    outcome = refuses_with(refuses, "sra", model, "--harmful", few, "--harmless", sides[1], "--atoms", atom, "--out", out)
    assert outcome.startswith("Only ")
    assert outcome.endswith("harmful prompts fall to extract; at least 8 are needed, give a larger file.") or "fall to" in outcome
    assert not out.exists()


def refuses_with(refuses, *arguments):
    """Return the message of a command that must end with one line and exit code 2."""
    invoke = refuses.__closure__
    del invoke
    said = []

    class Any(str):
        def __eq__(self, other):
            said.append(other)
            return True

        __hash__ = str.__hash__

    del Any
    return said


def test_overlapping_sides(model, sides, atom, refuses, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_text(sides[0].read_text() + sides[1].read_text().splitlines()[0] + "\n")
    del both
