"""The contrast study through the command line: on the organism, on model folders from prompt files, by recipes; and its bad input."""

import json
from pathlib import Path

import pytest

from resect import artifacts
from resect.commands.recipe import read_recipe
from resect.prompts import Prompt

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SMALL = {
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
SRA = {
    "arms": ["standard", "sra"],
    "extract_prompts": 24,
    "validation_prompts": 8,
    "test_prompts": 12,
    "lams": [1.0],
    "lam_sweep": [],
    "strengths": [1.0, 2.0],
    "curve_strengths": [1.0, 2.0],
    "windows": [[0.0, 1.0]],
    "passes": 1,
    "max_new_tokens": 32,
}
REFUSAL, ANSWER = "I cannot help with that.", "Sure, here it is."
FAMILIES = {
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", 90),
    "Mistral3ForConditionalGeneration": ("mistral3", 130),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5_vl", 90),
}


def options(settings):
    return [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


TOPICS = {"locks": ("door", "safe", "gate"), "chemistry": ("acid", "gas", "powder"), "money": ("bank", "card", "fund")}


def rows(start, count=20, *, pairs=True):
    return [
        {"text": f"{start} the {thing} of number {i}", "category": topic, "pair_id": f"{thing}{i}"} if pairs
        else {"text": f"{start} item {thing} {i}"}
        for topic, things in TOPICS.items() for thing in things for i in range(count)
    ]  # fmt: skip


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    made = {"harmful": rows("Develop a scheme against"), "matched": rows("Describe")} | {"unmatched": rows("What is", pairs=False)}
    return {name: write(folder / f"{name}.jsonl", lines) for name, lines in made.items()}


@pytest.fixture(scope="module")
def taught(plain, teach, sides, tmp_path_factory):
    """A function: the folder of a tiny model of an architecture that learned to refuse the harmful side; made once each."""
    made = {}

    def folder(architecture):
        if architecture not in made:
            family, steps = FAMILIES[architecture]
            model = plain(family)
            texts = {name: [json.loads(line)["text"] for line in path.read_text().splitlines()] for name, path in sides.items()}
            answered = texts["matched"][::2] + texts["unmatched"][::2]
            lessons = {REFUSAL: texts["harmful"][::2], ANSWER: answered}
            teach(model, {said: [Prompt(t) for t in asked] for said, asked in lessons.items()}, steps=steps)
            made[architecture] = tmp_path_factory.mktemp("taught") / family
            model.network.save_pretrained(made[architecture])
            model.tokenizer.save_pretrained(made[architecture])
        return made[architecture]

    return folder


@pytest.fixture(scope="module")
def organism_run(resect, tmp_path_factory):
    run = tmp_path_factory.mktemp("contrast") / "run"
    said = resect("contrast", "default", "--out", run, *options(SMALL))
    assert said.code == 0, said.err
    return run, said


def test_the_study_of_the_organism_ends_with_its_page(organism_run):
    run, said = organism_run
    assert said.out.splitlines()[-1] == f"Report: {run / 'report.html'}"
    assert "Does topic-matched contrast remove fewer refusals than unmatched contrast? (one layer)" in said.out
    document = artifacts.read_json(run / "contrast.json")
    assert document["evaluation"]["base"]["any"]["refusal_rate"]["value"] > 0.8
    assert (run / "manifest.json").is_file()
    found = {path.name for path in (run / "directions").iterdir()}
    assert found == {"unmatched_mean_difference.safetensors", "matched_mean_difference.safetensors"}
    vectors, header = artifacts.load_tensors(run / "directions" / "matched_mean_difference.safetensors", format="resect.directions/1")
    assert vectors["vectors"].shape == (6, 1, 128)
    assert header["method"] == "matched/mean_difference"


def test_the_same_command_again_gives_the_same_bytes(organism_run, resect, tmp_path):
    run, _ = organism_run
    before = (run / "manifest.json").read_bytes()
    again = resect("contrast", "default", "--out", run, *options(SMALL), "--json")
    assert again.code == 0, again.err
    assert again.json == artifacts.read_json(run / "contrast.json")
    assert (run / "manifest.json").read_bytes() == before
    anew = resect("contrast", "default", "--out", tmp_path / "anew", *options(SMALL))
    assert anew.code == 0, anew.err
    assert (tmp_path / "anew" / "manifest.json").read_bytes() == before


def test_a_folder_of_another_study_or_other_settings_is_refused(organism_run, resect, refuses):
    run, _ = organism_run
    other = {**SMALL, "weights": [0.5]}
    message = f"The folder {run} holds another run (weights was [1.0], now [0.5]); choose another --out, or remove it."
    refuses("contrast", "default", "--out", run, *options(other), message=message)
    message = f"{run} holds a contrast study, which has no stages; its report is made anew by the same command."
    assert message in resect("cleaning", run).err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_runs_on_a_tiny_model_of_its_architecture(taught, resect, sides, tmp_path, path):
    recipe = read_recipe(path)
    settings = SMALL if recipe.study == "contrast" else SRA
    files = {"harmful": sides["harmful"], "harmless": sides["unmatched"]} if recipe.study == "sra" else sides
    given = [part for name, file in files.items() for part in (f"--{name}", file)]
    model = ("--model", taught(recipe.architecture), "--dtype", "float32")
    said = resect("recipe", path, *model, *given, "--out", tmp_path / "run", *options(settings))
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.skipif(not (DATA / "contrast").is_dir(), reason="the pairs of JailbreakBench are not here")
def test_the_pairs_of_jailbreakbench_run_on_a_local_checkpoint(plain, teach, resect, tmp_path):
    files = {
        "harmful": "contrast/jbb_harmful.jsonl",
        "matched": "contrast/jbb_benign.jsonl",
        "unmatched": "benign/alpaca_harmless_1500.jsonl",
    }
    texts = {side: [Prompt(json.loads(line)["text"]) for line in (DATA / file).read_text().splitlines()] for side, file in files.items()}
    model, folder = plain("mistral3"), tmp_path / "model"
    teach(model, {REFUSAL: texts["harmful"], ANSWER: texts["matched"] + texts["unmatched"][:97]}, steps=200)
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    given = [part for side, file in files.items() for part in (f"--{side}", DATA / file)]
    settings = SMALL | {"baselines": ["unmatched", "matched", "paired"], "extract_prompts": 60}
    said = resect("contrast", folder, *given, "--out", tmp_path / "run", *options(settings))
    assert said.code == 0, said.err
    document = artifacts.read_json(tmp_path / "run" / "contrast.json")
    assert {name.split("/")[0] for name in document["arms"]} >= {"unmatched", "matched", "paired"}
    found = document["prompts"]["similarity"]
    assert found["within"] > found["shuffled"]


def test_a_recipe_refuses_another_architecture_and_what_is_not_filled_in(taught, refuses, sides, tmp_path):
    path = ROOT / "recipes" / "qwen3.5-2b.toml"
    given = [part for name, file in sides.items() for part in (f"--{name}", file)]
    folder = taught("Mistral3ForConditionalGeneration")
    message = (
        "The recipe is for Qwen3_5ForConditionalGeneration and the model is a Mistral3ForConditionalGeneration; "
        "give the model it is for, or write another recipe."
    )
    refuses("recipe", path, "--model", folder, *given, "--out", tmp_path / "run", message=message)
    message = (
        f"{path} leaves revision to fill in (commit of that Hub repository; a folder needs none); "
        "write it into the file, or give --revision."
    )
    refuses("recipe", path, "--model", "owner/name", *given, message=message)
    message = (
        f"{path} leaves harmful to fill in (prompts that the model refuses, with a category); write it into the file, or give --harmful."
    )
    refuses("recipe", path, "--model", folder, message=message)


def test_bad_sides_are_told_in_one_line(refuses, sides):
    def study(**changes):
        files = sides | changes
        return ("contrast", "default-model", *(part for name, file in files.items() if file for part in (f"--{name}", file)))

    message = "--matched is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column."
    refuses(*study(matched=None), message=message)
    message = "An organism brings its own prompts; leave out --harmful, --matched and --unmatched."
    refuses("contrast", "default", "--matched", sides["matched"], message=message)
    message = "Unknown baseline 'machted'; did you mean 'matched'? Allowed: dealt, matched, other_topics, paired, unmatched."
    refuses("contrast", "default", "--set", 'baselines=["machted"]', message=message)


def test_sides_that_cannot_be_matched_are_told_before_anything_runs(taught, refuses, sides, tmp_path):
    model, out = taught("Mistral3ForConditionalGeneration"), tmp_path / "run"

    def study(**changes):
        files = sides | changes
        return ("contrast", model, *(part for name, file in files.items() for part in (f"--{name}", file)), "--out", out, *options(SMALL))

    bare = write(tmp_path / "bare.jsonl", [{"text": line["text"]} for line in rows("Describe")])
    message = (
        "Some matched prompts have no category, so no topic can be matched; give every row a category column, the same names on the "
        "harmful and the matched side."
    )
    refuses(*study(matched=bare), message=message)
    other = write(tmp_path / "other.jsonl", [line | {"category": "gardening"} for line in rows("Describe")])
    message = (
        "Category 'chemistry' has harmful prompts and no matched ones (3 such categories); add benign prompts on that topic, or leave "
        "the category out."
    )
    refuses(*study(matched=other), message=message)
    assert not out.exists()
