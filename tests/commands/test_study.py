"""Arguments to values: settings, layers, sources of inputs."""

import pytest

from resect import artifacts
from resect.commands import edits, inputs, study
from resect.commands.inputs import Sources, read_sources
from resect.errors import UserError


def test_later_settings_win(tmp_path):
    (tmp_path / "c.toml").write_text("seed = 1\npasses = 1\nkl_tokens = 4\n")
    found = study.collect(tmp_path / "c.toml", ["passes=2", "source=single", "windows = [[0.0, 0.5]]"], {"seed": 3, "lams": None})
    assert found == {"seed": 3, "passes": 2, "kl_tokens": 4, "source": "single", "windows": [[0.0, 0.5]]}


def test_organisms_have_their_own_defaults_and_the_user_wins():
    assert study.resolve(Sources("default"), {}).max_new_tokens == 32
    assert study.resolve(Sources("default"), {"max_new_tokens": 7}).max_new_tokens == 7
    assert study.resolve(Sources("owner/name"), {}).max_new_tokens == 64


@pytest.mark.parametrize(("text", "value"), [(None, None), ("last", "last"), ("last_user", "last_user"), ("-3", -3)])
def test_positions(text, value):
    assert study.position(text) == value


@pytest.mark.parametrize(("text", "value"), [(None, None), ("3-7", (3, 7)), ("4", (4, 4)), ("0-0", (0, 0))])
def test_layers(text, value):
    assert edits.layers(text, option="--layers") == value


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "7-3", "1-2-3", "1,2"])
def test_wrong_layers_are_refused(text):
    with pytest.raises(UserError, match="--layers takes layers as FIRST-LAST"):
        edits.layers(text, option="--layers")


@pytest.mark.parametrize(("text", "value"), [(None, None), ("per_layer", "per_layer"), ("14", 14)])
def test_sources_of_the_direction(text, value):
    assert edits.source(text) == value


def test_the_sources_of_a_run_are_kept(tmp_path):
    sources = Sources("m", "a.jsonl", "b.jsonl", ("atoms",), ("gsm8k=q.jsonl",), "t.txt", "bfloat16", "main")
    sources.save(tmp_path)
    assert read_sources(tmp_path) == sources
    artifacts.write_json(tmp_path / "sources.json", {"format": "resect.sources/1", "model": "m"})
    with pytest.raises(UserError, match="has wrong fields"):
        read_sources(tmp_path)
    artifacts.write_json(tmp_path / "sources.json", {"format": "other"})
    with pytest.raises(UserError, match=r"is not of format 'resect\.sources/1'"):
        read_sources(tmp_path)


def test_trust_and_device_are_not_kept(tmp_path):
    Sources("m").save(tmp_path)
    assert not {"trust_remote_code", "device"} & set(artifacts.read_json(tmp_path / "sources.json"))


def test_question_files_are_named(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1 and 1", "answer": "2"}\n')
    assert inputs._question_file(f"maths={path}")[0] == "maths"
    name, prompts = inputs._question_file(str(path))
    assert (name, prompts.prompts[0].response) == ("sums", "2")
