"""Runs of the command line, in this process where nothing depends on a process of its own, on settings that are done in seconds."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass

import pytest
import torch

from resect.cli import main
from resect.models.chat import render

SMALL = {
    "arms": ["standard", "sra"],
    "extract_prompts": 32,
    "validation_prompts": 16,
    "test_prompts": 24,
    "capability_prompts": 8,
    "lams": [1.0],
    "lam_sweep": [1.0],
    "strengths": [1.0, 2.0],
    "curve_strengths": [1.0, 2.0],
    "windows": [[0.0, 1.0]],
    "source": "per_layer",
    "passes": 2,
    "ceilings": False,
}
TINY = {
    "arms": ["standard", "sra"],
    "extract_prompts": 24,
    "validation_prompts": 8,
    "test_prompts": 12,
    "lams": [1.0],
    "lam_sweep": [],
    "strengths": [1.0, 2.0],
    "curve_strengths": [1.0, 2.0],
    "windows": [[0.0, 1.0]],
    "source": "per_layer",
    "passes": 1,
    "max_new_tokens": 32,
}
CONTRAST = {
    "baselines": ["unmatched", "matched"],
    "methods": ["mean_difference"],
    "variants": ["raw_norm", "random"],
    "extract_prompts": 24,
    "validation_prompts": 8,
    "test_prompts": 12,
    "weights": [1.0],
    "curve_weights": [1.0],
    "pair_layers": 0,
    "paper_prompts": 4,
    "finalists": 1,
    "audit_cells": 1,
    "shares": [0.5],
    "sizes": [12],
    "max_new_tokens": 32,
    "opening_tokens": 32,
    "kl_tokens": 4,
}
TOPICS = {"locks": ("door", "safe", "gate"), "chemistry": ("acid", "gas", "powder"), "money": ("bank", "card", "fund")}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def invoke(*arguments, stdin=""):
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["resect", *map(str, arguments)], io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv, sys.stdin = before
    return Outcome(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def resect():
    """A function: runs a command and returns exit code, standard output and standard error."""
    return invoke


def options(settings):
    return [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="session")
def small():
    """Arguments with the settings of a run that is done in seconds."""
    return options(SMALL)


@pytest.fixture(scope="session")
def tiny_study():
    """A function: arguments with the settings of a study of a tiny model (`sra` or `contrast`), with changes."""
    settings = {"sra": TINY, "contrast": CONTRAST}
    return lambda study="sra", **changes: options(settings[study] | changes)


@pytest.fixture(scope="session")
def lessons():
    """A function: what a model is taught (`teach`), from prompts to refuse and prompts to answer."""
    return lambda refused, answered: {"I cannot help with that.": refused, "Sure, here it is.": answered}


@pytest.fixture(scope="session")
def save():
    """A function: writes a model and its tokenizer into a folder, which it returns."""

    def write(model, folder):
        model.network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def topical():
    """A function: rows of three topics that begin with the same words, in pairs with those of other beginnings, or without a topic."""

    def rows(start, count=20, *, pairs=True):
        return [
            {"text": f"{start} the {thing} of number {i}", "category": topic, "pair_id": f"{thing}{i}"}
            if pairs
            else {"text": f"{start} item {thing} {i}"}
            for topic, things in TOPICS.items()
            for thing in things
            for i in range(count)
        ]

    return rows


@pytest.fixture(scope="session")
def write_rows():
    """A function: writes rows as jsonl into a file, which it returns."""

    def write(path, rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def sides(topical, write_rows, tmp_path_factory):
    """Prompt files of the three sides of a contrast."""
    folder = tmp_path_factory.mktemp("sides")
    made = {"harmful": topical("Develop a scheme against"), "matched": topical("Describe")} | {"unmatched": topical("What is", pairs=False)}
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in made.items()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small):
    """The folder of a finished demo and what it printed; not to be changed."""
    run = tmp_path_factory.mktemp("demo") / "run"
    outcome = invoke("demo", "--out", run, *small)
    assert outcome.code == 0, outcome.err
    return run, outcome


@pytest.fixture(scope="session")
def staged(tmp_path_factory, small):
    """A run folder made stage by stage, and what each stage printed; not to be changed."""
    run = tmp_path_factory.mktemp("staged") / "run"
    commands = {
        "activations": ("activations", "default", "--out", run, *small),
        "directions": ("directions", run),
        "cleaning": ("cleaning", run, "--lam", "1"),
        "edit": ("edit", run),
        "evaluate": ("evaluate", run),
    }
    outcomes = {}
    for stage, command in commands.items():
        outcomes[stage] = invoke(*command)
        assert outcomes[stage].code == 0, outcomes[stage].err
    return run, outcomes


@pytest.fixture
def refuses():
    """A function: checks that a command ends with one line on standard error, nothing on standard output and exit code 2."""

    def check(*arguments, message, stdin=""):
        outcome = invoke(*arguments, stdin=stdin)
        errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
        assert (outcome.code, outcome.out, len(errors)) == (2, "", 1), outcome
        assert "Traceback" not in outcome.err
        assert outcome.err.splitlines()[-1] == errors[0]
        assert errors[0] == f"Error: {message}"

    return check


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain(tiny):
    """A function: a tiny model of a family as its initialiser makes it, so that it can be trained."""

    def build(family):
        model = tiny(family)
        torch.manual_seed(0)
        model.network.init_weights()
        return model

    return build


@pytest.fixture(scope="session")
def teach():
    """A function: trains a model to give each response to its prompts, so that it refuses of its own making."""

    def train(model, lessons, *, steps):
        tokenizer, network = model.tokenizer, model.network
        rows = []
        for response, prompts in lessons.items():
            said = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            rows += [(list(r.ids), said) for r in render(tokenizer, prompts)]
        network.requires_grad_(requires_grad=True)
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            picked = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:16].tolist()]
            width = max(len(prompt) + len(said) for prompt, said in picked)
            ids = torch.zeros(len(picked), width, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for k, (prompt, said) in enumerate(picked):
                ids[k, : len(prompt) + len(said)] = torch.tensor(prompt + said)
                labels[k, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
            network(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        network.requires_grad_(requires_grad=False)

    return train
