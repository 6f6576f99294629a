"""A second study into another folder: no forward pass, the same bytes; and everything that must make it compute again."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from resect import artifacts
from resect.models.load import load_model
from resect.organism.shipped import load_organism
from resect.report import page

TINY = {
    "arms": ["sra"],
    "gamma_rule": "flat",
    "extract_prompts": 16,
    "validation_prompts": 8,
    "test_prompts": 8,
    "lams": [1.0],
    "lam_sweep": [1.0],
    "strengths": [1.0, 2.0],
    "curve_strengths": [1.0, 2.0],
    "windows": [[0.0, 1.0]],
    "source": "per_layer",
    "passes": 1,
    "max_new_tokens": 24,
    "opening_tokens": 12,
    "processes": 1,  # forward passes of other processes would not be counted
}


def options(settings):
    return [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def manifest(run):
    return json.loads((run / "manifest.json").read_text())["files"]


@pytest.fixture
def passes():
    """A list that gets one item for every forward pass of any network."""
    seen = []

    def note(module, _args):
        if isinstance(module, PreTrainedModel):
            seen.append(type(module).__name__)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The shipped organism as an ordinary model folder, with its prompts in files: what a user of a real model has."""
    folder, organism = tmp_path_factory.mktemp("model"), load_organism()
    shutil.copytree(organism.folder / "aligned", folder / "model")
    language = organism.language
    harmless = language.harmless("extract").prompts
    sides = {"harmful": language.harmful("extract").prompts[:48], "harmless": harmless[:48], "other": harmless[48:96]}
    for side, prompts in sides.items():
        (folder / f"{side}.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in prompts))
    (folder / "atoms").mkdir()
    for atom in language.atoms()[:3]:
        fields = {"name": atom.name, "role": "shield", "positive": list(atom.positive), "negative": list(atom.negative)}
        text = 'format = "resect.atom/1"\n' + "".join(f"{k} = {json.dumps(v)}\n" for k, v in fields.items())
        (folder / "atoms" / f"{atom.name}.toml").write_text(text)
    return folder


def arguments(folder, run, **settings):
    files = ("--harmful", folder / "harmful.jsonl", "--harmless", folder / "harmless.jsonl", "--atoms", folder / "atoms")
    return (folder / "model", *files, "--out", run, *options(TINY | settings))


@pytest.fixture
def drawn(monkeypatch):
    """A list that gets one item for every chart drawn."""
    seen, render = [], page.render
    monkeypatch.setattr(page, "render", lambda chart, **about: seen.append(about["prefix"]) or render(chart, **about))
    return seen


def test_a_second_study_makes_no_forward_pass_and_the_same_bytes(resect, passes, drawn, cache_place, tmp_path):
    settings = options(TINY | {"arms": ["standard", "sra"], "passes": 2})
    changed = ("--set", "lams=[2.0]")
    made, charts, runs = {}, {}, {name: tmp_path / name for name in ("first", "second", "changed", "changed without")}
    for (name, run), more in zip(runs.items(), ((), (), changed, (*changed, "--no-cache")), strict=True):
        passes.clear()
        drawn.clear()
        kept = {p.name: p.stat() for p in cache_place.rglob("*.safetensors")}
        said = resect("demo", "--out", run, *settings, *more)
        assert said.code == 0, said.err
        made[name], charts[name] = len(passes), len(drawn)
    assert {p.name: p.stat() for p in cache_place.rglob("*.safetensors")} == kept  # the last run neither wrote nor read
    assert made["second"] == 0 < made["first"]
    assert charts["second"] == 0 < charts["changed"] == charts["changed without"]
    assert 0 < made["changed"] < 0.6 * made["changed without"]
    assert manifest(runs["first"]) == manifest(runs["second"])
    assert manifest(runs["changed"]) == manifest(runs["changed without"]) != manifest(runs["first"])
    steps = set(artifacts.read_json(runs["changed"] / "timings.json")["seconds"])
    assert {"selection_sra", "test_sra", "curve_sra", "passes"} <= steps
    assert (
        not {"base_harmful_test", "harmful", "atoms", "judges", "selection_standard", "test_base", "test_standard", "curve_standard"}
        & steps
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


WARM = {"base_harmful_test", "base_harmless_extract", "judges", "harmful", "harmless", "atoms"}
CHANGES = {
    "a weight byte": WARM,
    "the template": WARM,
    "the prompts of one side": {"base_harmless_extract", "judges", "harmless"},
    "the dtype": WARM,
    "the position": {"harmful", "harmless", "atoms"},
}
"""What must be computed again, and nothing else of `WARM`."""


def changed(asked, folder, run, what):
    """Return the arguments for a copy of the files in which one thing is another."""
    shutil.copytree(asked, folder)
    given = list(arguments(folder, run))
    if what == "a weight byte":
        flip(folder / "model" / "model.safetensors")
    if what == "the template":
        template = folder / "model" / "chat_template.jinja"
        template.write_text(template.read_text() + "{# #}")
    if what == "the prompts of one side":
        given[given.index("--harmless") + 1] = folder / "other.jsonl"
    return given + {"the dtype": ["--dtype", "bfloat16"], "the position": ["--position", "-2"]}.get(what, [])


def test_what_is_changed_is_computed_again_and_nothing_else(resect, passes, asked, tmp_path):
    for run in ("first", "second"):
        passes.clear()
        said = resect("activations", *arguments(asked, tmp_path / run))
        assert said.code == 0, said.err
    assert not passes
    for n, (what, expected) in enumerate(CHANGES.items()):
        passes.clear()
        said = resect("activations", *changed(asked, tmp_path / f"files{n}", tmp_path / f"run{n}", what))
        assert said.code == 0, said.err
        assert passes, what
        computed = {line.split(": ")[1] for line in said.err.splitlines() if line.startswith("activations: ")}
        assert computed & WARM == expected, what


def test_a_damaged_entry_is_made_again_with_a_warning(resect, asked, cache_place, tmp_path, caplog):
    assert resect("activations", *arguments(asked, tmp_path / "first")).code == 0
    entries = sorted(cache_place.rglob("*.safetensors"))
    for entry in entries:
        flip(entry)
    assert resect("activations", *arguments(asked, tmp_path / "second")).code == 0
    assert sum("damaged and made again" in message for message in caplog.messages) == len(entries)
    for name in ("activations/harmful.safetensors", "steps/base_harmless_test.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def everything_kept(place):
    for path in place.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["header"])
            yield header["step"], header["value"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rows_of_ids(value):
    """Return the lists of at least four integers in a value, but for the runs of refusals that the echo judge knows."""
    if isinstance(value, dict):
        return [row for k, v in value.items() if k not in ("runs", "ids") for row in rows_of_ids(v)]
    if not isinstance(value, list):
        return []
    own = len(value) >= 4 and all(type(x) is int for x in value)
    return [value] if own else [row for item in value for row in rows_of_ids(item)]


def flat(value):
    if isinstance(value, dict):
        return [x for item in value.items() for x in flat(item)]
    return [x for item in value for x in flat(item)] if isinstance(value, list | tuple) else [value]


def test_no_answer_to_a_harmful_prompt_is_kept_unless_texts_are_asked_for(resect, asked, cache_place, tmp_path):
    said = resect("sra", *arguments(asked, tmp_path / "run"))
    assert said.code == 0, said.err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert any(row["set"] == "harmful" and row["verdict"] == "comply" for row in samples)
    tokenizer = load_model(asked / "model").tokenizer
    harmful = {row["response"] for row in samples if row["set"] == "harmful"}
    answers = []
    for step, value, tensors in everything_kept(cache_place):
        assert not any(t.dtype in (torch.int64, torch.int32) for t in tensors.values()), step
        if step.startswith("base_harmless") and value:
            answers += value
        elif step == "response log-probs":  # with the places where each prompt's rows begin
            assert value[0] == 0
            assert value == sorted(value)
            assert value[-1] == len(tensors["rows"])
        elif step == "report":
            assert value == (tmp_path / "run" / "report.html").read_text()
            assert "Texts were not kept" in value
        elif step not in ("writers", "edit_proof", "forecast", "passes"):  # whose names and sentences are resect's own
            assert not rows_of_ids(value), step
            assert all(len(x) <= 24 or re.fullmatch("[0-9a-f]{64}", x) for x in flat(value) if isinstance(x, str)), step
    # The only token ids are those of the base's answers to harmless prompts.
    assert len(answers) == 32
    assert not harmful & {hashlib.sha256(tokenizer.decode(ids, skip_special_tokens=True).encode()).hexdigest() for ids in answers}
    again = resect("sra", *arguments(asked, tmp_path / "texts", keep_text=True))
    assert again.code == 0
    kept = [v for step, v, _ in everything_kept(cache_place) if step == "test_sra"]
    assert sorted(v["harmful"]["text"] is not None for v in kept) == [False, True]


def test_the_cache_is_listed_and_cleared(resect, asked, cache_place, tmp_path):
    assert resect("cache", "list").out == f"0 entries, 0 B of 5.0 GB: {cache_place}\n"
    assert resect("activations", *arguments(asked, tmp_path / "run")).code == 0
    shown, told = resect("cache", "list").out, resect("cache", "list", "--json").json
    files = list(cache_place.rglob("*.safetensors"))
    assert told["place"] == str(cache_place)
    assert told["limit_bytes"] == 5_000_000_000
    assert told["bytes"] == sum(p.stat().st_size for p in files) == sum(e["size"] for e in told["entries"])
    assert {e["key"] for e in told["entries"]} == {p.stem for p in files}
    assert {"writers", "harmful", "atoms", "judges", "base_harmful_test"} <= {e["step"] for e in told["entries"]}
    assert all(0 <= e["age_seconds"] < 600 for e in told["entries"])
    assert "base_harmful_test" in shown
    assert shown.splitlines()[-1].startswith(f"{len(files)} entries, ")
    gone = resect("cache", "clear", "--json").json
    assert gone == {"place": str(cache_place), "removed": len(files), "bytes": told["bytes"], "left": 0}
    assert resect("cache", "clear").out == f"Removed 0 files, 0 B, 0 are left: {cache_place}\n"


def test_a_wrong_limit_is_one_line(refuses, monkeypatch):
    monkeypatch.setenv("RESECT_CACHE_GB", "lots")
    message = "RESECT_CACHE_GB is 'lots', which is no positive number of gigabytes; give one, leave it unset, or use --no-cache."
    refuses("cache", "list", message=message)
