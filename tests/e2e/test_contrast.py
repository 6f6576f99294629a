"""The contrast study through the command line: on the organism, on model folders from prompt files, by recipes; and its bad input."""

import json
import re
from pathlib import Path

import pytest

from resect import artifacts
from resect.commands.recipe import read_recipe
from resect.prompts import Prompt

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FAMILIES = {
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", 90),
    "Mistral3ForConditionalGeneration": ("mistral3", 130),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5_vl", 90),
}


@pytest.fixture(scope="module")
def taught(plain, teach, lessons, save, sides, tmp_path_factory):
    """A function: the folder of a tiny model of an architecture that learned to refuse the harmful side; made once each."""
    made = {}

    def folder(architecture):
        if architecture not in made:
            family, steps = FAMILIES[architecture]
            model = plain(family)
            texts = {name: [json.loads(line)["text"] for line in path.read_text().splitlines()] for name, path in sides.items()}
            refused, answered = texts["harmful"][::2], texts["matched"][::2] + texts["unmatched"][::2]
            teach(model, lessons([Prompt(t) for t in refused], [Prompt(t) for t in answered]), steps=steps)
            made[architecture] = save(model, tmp_path_factory.mktemp("taught") / family)
        return made[architecture]

    return folder


@pytest.fixture(scope="module")
def organism_run(resect, tiny_study, tmp_path_factory):
    run = tmp_path_factory.mktemp("contrast") / "run"
    said = resect("contrast", "default", "--out", run, *tiny_study("contrast"))
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


def test_the_same_command_again_gives_the_same_bytes(organism_run, resect, tiny_study, tmp_path):
    run, _ = organism_run
    before = (run / "manifest.json").read_bytes()
    again = resect("contrast", "default", "--out", run, *tiny_study("contrast"), "--json")
    assert again.code == 0, again.err
    assert again.json == artifacts.read_json(run / "contrast.json")
    assert (run / "manifest.json").read_bytes() == before
    anew = resect("contrast", "default", "--out", tmp_path / "anew", *tiny_study("contrast"))
    assert anew.code == 0, anew.err
    assert (tmp_path / "anew" / "manifest.json").read_bytes() == before


def test_a_folder_of_another_study_or_other_settings_is_refused(organism_run, resect, tiny_study, refuses):
    run, _ = organism_run
    message = f"The folder {run} holds another run (weights was [1.0], now [0.5]); choose another --out, or remove it."
    refuses("contrast", "default", "--out", run, *tiny_study("contrast", weights=[0.5]), message=message)
    message = f"{run} holds a contrast study, which has no stages; its report is made anew by the same command."
    assert message in resect("cleaning", run).err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_runs_on_a_tiny_model_of_its_architecture(taught, resect, tiny_study, sides, tmp_path, path):
    recipe = read_recipe(path)
    files = {"harmful": sides["harmful"], "harmless": sides["unmatched"]} if recipe.study == "sra" else sides
    given = [part for name, file in files.items() for part in (f"--{name}", file)]
    model = ("--model", taught(recipe.architecture), "--dtype", "float32")
    said = resect("recipe", path, *model, *given, "--out", tmp_path / "run", *tiny_study(recipe.study))
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.skipif(not (DATA / "contrast").is_dir(), reason="the pairs of JailbreakBench are not here")
def test_the_pairs_of_jailbreakbench_run_on_a_local_checkpoint(plain, teach, lessons, save, resect, tiny_study, tmp_path):
    files = {
        "harmful": "contrast/jbb_harmful.jsonl",
        "matched": "contrast/jbb_benign.jsonl",
        "unmatched": "benign/alpaca_harmless_1500.jsonl",
    }
    texts = {side: [Prompt(json.loads(line)["text"]) for line in (DATA / file).read_text().splitlines()] for side, file in files.items()}
    model = plain("mistral3")
    teach(model, lessons(texts["harmful"], texts["matched"] + texts["unmatched"][:97]), steps=200)
    folder = save(model, tmp_path / "model")
    given = [part for side, file in files.items() for part in (f"--{side}", DATA / file)]
    settings = tiny_study("contrast", baselines=["unmatched", "matched", "paired"], extract_prompts=60)
    said = resect("contrast", folder, *given, "--out", tmp_path / "run", *settings)
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


def study(taught, sides, run, settings, **changes):
    given = [part for side, file in (sides | changes).items() for part in (f"--{side}", file)]
    return ("contrast", taught("Mistral3ForConditionalGeneration"), *given, "--out", run, *settings)


def test_empty_clusters_are_told_before_any_edit_is_tried(taught, resect, sides, tiny_study, tmp_path):
    """Maps start from the prompts, some of them more than once: of two such neurons one wins nothing."""
    maps = {"methods": ["som"], "som_rows": 2, "som_columns": 4, "som_winners": 8, "som_iterations": 50}
    said = resect(*study(taught, sides, tmp_path / "run", tiny_study("contrast", **maps)))
    message = r"Error: Only \d neurons of a map win prompts, and 8 winners a class were asked for; ask for fewer\."
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(message, said.err.splitlines()[-1])
    assert not list((tmp_path / "run" / "steps").glob("grid_*"))


def test_a_set_that_is_hardly_matched_and_all_that_was_left_out_are_said_aloud(
    taught, resect, sides, topical, write_rows, tiny_study, tmp_path
):
    """Matched prompts that have nothing in common with their partners, one of them twice; their pair ids are not asked for."""
    rows = [{"text": f"Sing {i} songs to {i * i} birds", "category": row["category"]} for i, row in enumerate(topical("Describe"))]
    matched = write_rows(tmp_path / "matched.jsonl", [*rows, rows[0]])
    said = resect(*study(taught, sides, tmp_path / "run", tiny_study("contrast"), matched=matched))
    assert said.code == 0, said.err
    notes = [line.removeprefix("Note: ") for line in said.out.splitlines() if line.startswith("Note: ")]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for words in (
        "this set is hardly matched",
        "Rows of the matched file left out as duplicates or blank: 1.",
        "nothing was matched per pair",
    ):
        assert any(words in note for note in notes), words
        assert words in page
    similarity = artifacts.read_json(tmp_path / "run" / "contrast.json")["prompts"]["similarity"]
    assert similarity["within"] <= similarity["shuffled"]


def test_categories_that_are_not_in_the_file_are_predicted_and_reported(taught, resect, sides, topical, write_rows, tiny_study, tmp_path):
    bare = [{"text": row["text"], "category": row["category"] if i % 4 == 0 else None} for i, row in enumerate(topical("Describe"))]
    matched = write_rows(tmp_path / "matched.jsonl", bare)
    said = resect(
        *study(taught, sides, tmp_path / "run", tiny_study("contrast", predict_categories=True, position="mean"), matched=matched)
    )
    assert said.code == 0, said.err
    found = artifacts.read_json(tmp_path / "run" / "contrast.json")["prompts"]["predicted"]
    assert (found["matched"], found["harmful"], found["labelled"], found["known"]) == (135, 0, 180, 45)
    assert "Note: Categories of 135 matched and 0 harmful prompts were predicted" in said.out
