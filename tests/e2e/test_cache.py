"""A second study into another folder: no forward pass, the same bytes; and everything that must make it compute again."""

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
    sides = {"harmful": language.harmful("extract").prompts[:48], "harmless": language.harmless("extract").prompts[:48]}
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


def test_a_second_study_makes_no_forward_pass_and_the_same_bytes(resect, passes, cache_place, tmp_path):
    settings = options(TINY | {"arms": ["standard", "sra"], "passes": 2})
    runs = [tmp_path / name for name in ("first", "second", "without", "changed", "changed_without")]
    made = []
    for run, more in zip(runs, ((), (), ("--no-cache",), ("--set", "lams=[2.0]"), ("--set", "lams=[2.0]", "--no-cache")), strict=True):
        passes.clear()
        kept = {p.name: p.read_bytes() for p in cache_place.rglob("*.safetensors")}
        said = resect("demo", "--out", run, *settings, *more)
        assert said.code == 0, said.err
        made.append(len(passes))
        if "--no-cache" in more:
            assert {p.name: p.read_bytes() for p in cache_place.rglob("*.safetensors")} == kept
    first, second, without, changed, changed_without = made
    assert second == 0
    assert 0 < changed < 0.6 * changed_without
    assert first > 0 < without
    assert manifest(runs[0]) == manifest(runs[1]) == manifest(runs[2])
    assert manifest(runs[3]) == manifest(runs[4]) != manifest(runs[0])
    steps = artifacts.read_json(runs[3] / "timings.json")["seconds"]
    assert {"selection_sra", "test_sra", "curve_sra", "passes", "lambda_1"} <= set(steps)
    assert not {
        "base_harmful_test",
        "harmful",
        "atoms",
        "judges",
        "selection_standard",
        "test_base",
        "test_standard",
        "curve_standard",
    } & set(steps)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES = {
    "a weight byte": (lambda folder: flip(folder / "model" / "model.safetensors"), ()),
    "the template": (lambda folder: rewrite(folder / "model" / "chat_template.jinja", r"\Z", "{# #}"), ()),
    "a prompt": (lambda folder: rewrite(folder / "harmless.jsonl", r"\A[^\n]*\n", ""), ()),
    "the dtype": (lambda folder: None, ("--dtype", "bfloat16")),
    "the position": (lambda folder: None, ("--position", "-2")),
}
WARM = ("base_harmful_test", "base_harmless_extract", "harmful", "atoms")


def rewrite(path, pattern, new):
    path.write_text(re.sub(pattern, new, path.read_text(), count=1))


@pytest.mark.parametrize("what", list(CHANGES))
def test_what_is_changed_is_computed_again(resect, passes, asked, tmp_path, what):
    folder = shutil.copytree(asked, tmp_path / "files")
    said = resect("activations", *arguments(folder, tmp_path / "first"))
    assert said.code == 0, said.err
    passes.clear()
    assert resect("activations", *arguments(folder, tmp_path / "second")).code == 0
    assert not passes
    change, more = CHANGES[what]
    change(folder)
    said = resect("activations", *arguments(folder, tmp_path / "third"), *more)
    assert said.code == 0, said.err
    assert passes
    computed = {line.split(": ")[1] for line in said.err.splitlines() if line.startswith("activations: ")}
    expected = {"a prompt": {"base_harmless_extract"}, "the position": {"harmful", "atoms"}}.get(what, set(WARM))
    assert {name for name in WARM if name in computed} >= expected
    if what == "the position":
        assert not {"base_harmful_test", "judges"} & computed


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
    texts, answers = [], []
    for step, value, tensors in everything_kept(cache_place):
        texts += [
            x
            for x in flat(value)
            if isinstance(x, str)
            and len(x) > 24
            and not re.fullmatch(r"[0-9a-f]{64}|[\w.]+|Cleaning is .*|.* was the last allowed|.* still refuse", x)
        ]
        answers += value if step.startswith("base_") and isinstance(value, list) and value and isinstance(value[0], list) else []
        assert not any(t.dtype in (torch.int64, torch.int32) for t in tensors.values()), step
    assert not texts
    # Token ids are those of answers to harmless prompts; nothing else in the cache is a list of lists of them.
    harmful = set((asked / "harmful.jsonl").read_text().splitlines())
    assert len(answers) == 32
    assert harmful
    shown = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert not {row["response"] for row in samples if row["set"] == "harmful" and row["arm"] == "sra"} & {sha(t) for t in shown}
    again = resect("sra", *arguments(asked, tmp_path / "texts", keep_text=True))
    assert again.code == 0
    kept = [v for step, v, _ in everything_kept(cache_place) if step == "test_sra"]
    assert sorted(v["harmful"]["text"] is not None for v in kept) == [False, True]


def sha(text):
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


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
