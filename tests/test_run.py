"""Run folders: the same run goes on, anything else is refused, and the manifest names every file."""

import hashlib
import json

import pytest
import torch

from resect import artifacts, run
from resect.config import dump_toml, make_config
from resect.edit.plan import EditPlan, WriterEdit
from resect.errors import UserError
from resect.studies.materials import Materials

SETTINGS = {"format": run.RUN, "study": "sra", "model": "m", "model_fingerprint": "f", "inputs_fingerprint": "i"}
ABOUT = {
    "format": run.ACTIVATIONS,
    "model": "m",
    "model_fingerprint": "f",
    "position": "last",
    "prompts": {"harmful": {"fingerprint": "a", "n": 3}, "harmless": {"fingerprint": "b", "n": 4}},
    "atoms": [{"name": "deception", "role": "target"}, {"name": "coding", "role": "shield"}],
}


def materials():
    torch.manual_seed(0)
    return Materials(torch.randn(3, 2, 5), torch.randn(4, 2, 5), torch.randn(2, 2, 5), ("deception", "coding"), (False, True))


def test_a_new_folder_is_made_and_the_same_run_goes_on(tmp_path):
    out = tmp_path / "deep" / "run"
    run.open_folder(out, SETTINGS)
    assert (out / "run.toml").read_text() == dump_toml(SETTINGS)
    (out / "steps").mkdir()
    run.open_folder(out, SETTINGS)


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    run.open_folder(tmp_path / "run", SETTINGS)
    with pytest.raises(
        UserError, match=r"holds another run \(inputs_fingerprint was \"i\", now \"j\"\); choose another --out, or remove it"
    ):
        run.open_folder(tmp_path / "run", SETTINGS | {"inputs_fingerprint": "j"})
    with pytest.raises(UserError, match=r"holds another run \(passes was unset, now 3\)"):
        run.open_folder(tmp_path / "run", SETTINGS | {"passes": 3})
    assert (tmp_path / "run" / "run.toml").read_text() == dump_toml(SETTINGS)


def test_what_a_killed_first_write_leaves_does_not_count(tmp_path):
    (tmp_path / ".run.toml.12.tmp").write_text("form")
    run.open_folder(tmp_path, SETTINGS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run.open_folder(tmp_path / "other", SETTINGS)


def test_the_settings_of_a_run_are_read_back(tmp_path):
    config = make_config({"seed": 4, "windows": [[0.0, 0.5]], "system": 'say "hi"\n', "position": -2})
    run.open_folder(tmp_path / "run", SETTINGS | config.model_dump())
    assert run.read_settings(tmp_path / "run") == config
    with pytest.raises(UserError, match=r"is no run folder \(it has no run\.toml\)"):
        run.read_settings(tmp_path)
    (tmp_path / "run.toml").write_text("format = 'resect.run/9'")
    with pytest.raises(UserError, match=r"has format 'resect\.run/9', but this version reads 'resect\.run/1'"):
        run.read_settings(tmp_path)
    (tmp_path / "run.toml").write_text("format = ")
    with pytest.raises(UserError, match="is not valid TOML"):
        run.read_settings(tmp_path)


def test_directions_and_cleaning_carry_where_they_come_from(tmp_path):
    made = materials()
    run.save_directions(tmp_path, ABOUT, made.raw)
    tensors, header = artifacts.load_tensors(tmp_path / "directions.safetensors", format=artifacts.DIRECTIONS, axes={"vectors": 3})
    assert torch.equal(tensors["vectors"][:, 0], made.raw)
    assert header["method"] == "mean_difference"
    assert header["prompts"]["harmless"] == {"fingerprint": "b", "n": 4}
    run.save_cleaning(tmp_path, ABOUT, made, made.raw * 2, method="sra", softness=3.0)
    tensors, header = artifacts.load_tensors(tmp_path / "cleaning.safetensors", format=run.CLEANING)
    assert torch.equal(tensors["vectors"][:, 0], made.raw * 2)
    assert torch.allclose(tensors["harmless_mean"], made.harmless.mean(0), atol=1e-6)
    assert (header["softness"], header["atoms"]) == (3.0, ["deception", "coding"])


def test_materials_are_read_back_without_a_model(tmp_path):
    made = materials()
    for name, key in run.MATERIALS.items():
        path = tmp_path / "activations" / f"{name}.safetensors"
        artifacts.save_tensors(path, {key: getattr(made, name)}, {"format": "resect.step/1", "step": name})
    with pytest.raises(UserError, match="has no activations yet; make them with: resect activations MODEL"):
        run.read_materials(tmp_path)
    artifacts.write_json(tmp_path / "activations" / "about.json", ABOUT)
    found = run.read_materials(tmp_path)
    assert all(torch.equal(getattr(found, name), getattr(made, name)) for name in run.MATERIALS)
    assert (found.names, found.kept) == (made.names, made.kept)
    assert torch.equal(found.kept_atoms, made.atoms[:, 1:])


def test_an_edit_is_read_back(tmp_path):
    plan = EditPlan((WriterEdit("w", torch.eye(5)[:, :2], torch.eye(5)[:, 1:3], 0.5),))
    with pytest.raises(UserError, match="has no edit yet; make one with: resect edit"):
        run.read_edit(tmp_path)
    proof = {"format": "resect.edit_proof/1", "faults": []}
    run.save_edit(tmp_path, ABOUT, plan, arm="sra", choice={"strength": 0.5}, proof=proof)
    assert artifacts.read_json(tmp_path / "edit_proof.json") == {
        **proof,
        "arm": "sra",
        "form": "hooks",
        "model": "m",
        "model_fingerprint": "f",
    }
    found, description = run.read_edit(tmp_path)
    assert found == plan
    assert (description["arm"], description["model_fingerprint"], description["choice"]) == ("sra", "f", {"strength": 0.5})
    (tmp_path / "edit.json").write_text('{"format": "resect.edit/1"}')
    with pytest.raises(UserError, match="lists no edits"):
        run.read_edit(tmp_path)


def test_the_manifest_names_every_file_but_the_times(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "a.json").write_text("{}")
    (tmp_path / "timings.json").write_text("{}")
    (tmp_path / "steps" / ".b.json.7.tmp").write_text("{")
    run.finish(tmp_path)
    run.finish(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"] == {"steps/a.json": hashlib.sha256(b"{}").hexdigest()}
    assert not list(tmp_path.rglob("*.tmp"))
