"""The study on ordinary Hugging Face folders: vision-language models (text side) and a hybrid, tiny, from real prompt files."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from resect import artifacts
from resect.models.load import find_blocks
from resect.prompts import load_prompts

DATA = Path(__file__).parents[3] / "shared" / "data"
STEPS = {"qwen3_vl": 500, "mistral3": 170, "qwen3_5": 120}


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory):
    """The shared prompt files; where they are not there, generated ones with as plain a difference."""
    shared = DATA / "harmful" / "advbench.jsonl", DATA / "benign" / "alpaca_harmless_1500.jsonl"
    if all(path.is_file() for path in shared):
        return shared
    folder = tmp_path_factory.mktemp("prompts")
    made = folder / "harmful.jsonl", folder / "harmless.jsonl"
    for path, start in zip(made, ("Develop a harmful scheme against", "What is known about"), strict=True):
        path.write_text("".join(json.dumps({"text": f"{start} item number {i} of {i * 7}"}) + "\n" for i in range(300)))
    return made


@pytest.fixture(scope="module")
def atoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atoms")
    for name in ("deception", "coding", "politeness"):
        source = files("resect") / "data" / "atoms" / f"{name}.toml"
        (folder / f"{name}.toml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@pytest.fixture
def arguments(prompt_files, atoms, tiny_study, tmp_path):
    return ("--harmful", prompt_files[0], "--harmless", prompt_files[1], "--atoms", atoms, "--out", tmp_path / "run", *tiny_study())


@pytest.mark.parametrize("name", list(STEPS))
def test_the_study_runs_to_its_report_on_a_model_folder(plain, teach, lessons, save, resect, prompt_files, arguments, tmp_path, name):
    model = plain(name)
    harmful, harmless = (load_prompts(path).prompts for path in prompt_files)
    teach(model, lessons(harmful[:100], [p for p in harmless if len(p.text) < 150][:100]), steps=STEPS[name])
    folder, run = save(model, tmp_path / name), tmp_path / "run"
    said = resect("sra", folder, *arguments)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == f"Report: {run / 'report.html'}"
    evaluation, study = (artifacts.read_json(run / f"{part}.json") for part in ("evaluation", "study"))
    assert set(evaluation["arms"]) == {"base", "standard", "sra"}
    assert evaluation["arms"]["base"]["refusal_rate"]["value"] > 0.3
    assert study["model"]["architecture"] == type(model.network).__name__
    assert study["model"]["layers"] == len(find_blocks(model.network))
    assert study["prompts"]["harmful"]["extract"]["kept"] <= study["prompts"]["harmful"]["extract"]["n"] == 24
    assert (run / "manifest.json").is_file()
    # Responses are not kept unless they are asked for.
    assert not any("text" in json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines())


def test_an_untaught_model_has_no_refusal_to_find(tiny, save, refuses, arguments, tmp_path):
    folder, run = save(tiny("qwen3_vl"), tmp_path / "random"), tmp_path / "run"
    message = (
        "The base model refuses none of the 44 harmful prompts, so there is no refusal to find; use prompts that it refuses, or check the "
        "chat template and the system prompt."
    )
    refuses("sra", folder, *arguments, message=message)
    assert not (run / "edit.json").exists()
    assert not list(run.rglob("selection_*"))
