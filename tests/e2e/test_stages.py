"""Stage by stage, each from the files of the one before, with the study's own numbers."""

import shutil

import pytest
import torch

from resect import artifacts


def tensor(run, name, key="vectors"):
    return artifacts.load_tensors(run / f"{name}.safetensors", format=f"resect.{name}/1")[0][key]


def test_each_stage_says_what_comes_next(staged):
    run, said = staged
    nexts = {"activations": "directions", "directions": "cleaning", "cleaning": "edit", "edit": "evaluate"}
    for stage, following in nexts.items():
        assert f"Next: resect {following} {run}" in said[stage].out
    assert "harmful" in said["activations"].out
    assert (run / "evaluation.json").is_file()


def test_the_stages_and_the_study_give_the_same_numbers(staged, finished):
    one, other = staged[0], finished[0]
    for name in ("directions", "cleaning"):
        assert torch.equal(tensor(one, name), tensor(other, name))
    assert (one / "run.toml").read_bytes() == (other / "run.toml").read_bytes()
    assert artifacts.read_json(one / "edit.json") == artifacts.read_json(other / "edit.json")
    assert (one / "edit.safetensors").read_bytes() == (other / "edit.safetensors").read_bytes()
    arms, wanted = (artifacts.read_json(run / "evaluation.json")["arms"] for run in (one, other))
    assert set(arms) == {"base", "sra"}
    assert arms == {name: wanted[name] for name in arms}


def test_a_staged_run_can_be_finished_as_a_study(staged, finished, resect, small, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    done = set((run / "steps").iterdir())
    assert resect("sra", "default", "--out", run, *small).code == 0
    assert done <= set((run / "steps").iterdir())
    assert (run / "evaluation.json").read_bytes() == (finished[0] / "evaluation.json").read_bytes()
    assert (run / "study.json").read_bytes() == (finished[0] / "study.json").read_bytes()


def test_a_method_and_a_lambda_change_the_direction(staged, resect, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    raw, found = tensor(run, "directions"), {"sra 1": tensor(run, "cleaning")}
    for method, lam in (("none", None), ("projected", None), ("sra", "0"), ("whitened", "3"), ("combined", None), ("random_atoms", None)):
        said = resect("cleaning", run, "--method", method, *([] if lam is None else ["--lam", lam]), "--json")
        assert said.code == 0, said.err
        found[method] = tensor(run, "cleaning")
    assert torch.equal(found.pop("none"), raw)
    assert not any(torch.allclose(a, b) for i, a in enumerate(found.values()) for b in [raw, *list(found.values())[:i]])
    mean = tensor(run, "cleaning", "harmless_mean")
    cosine = torch.nn.functional.cosine_similarity(found["projected"][:, 0], mean, dim=-1)
    assert cosine.abs().max() < 1e-5


def test_a_stage_done_again_removes_what_came_after(staged, resect, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    assert resect("cleaning", run, "--method", "none").code == 0
    assert not (run / "edit.json").exists()
    assert not (run / "evaluation.json").exists()
    assert (run / "directions.safetensors").exists()


def test_what_is_fixed_of_an_edit_is_taken(staged, resect, tmp_path):
    run = shutil.copytree(staged[0], tmp_path / "run")
    made = resect("edit", run, "--strength", "1.5", "--source", "4", "--window", "2-5", "--json").json
    assert (made["strength"], made["source"], made["window"]) == (1.5, 4, [2, 5])
    assert made["profile"][:2] == [0, 0]
    assert {e["writer"].split(".")[2] for e in artifacts.read_json(run / "edit.json")["edits"]} == {"2", "3", "4", "5"}
    assert not (run / "evaluation.json").exists()
    evaluation = resect("evaluate", run, "--json").json
    assert evaluation["arms"]["sra"]["refusal_rate"]["n"] == 24


def test_an_arm_of_a_finished_study_becomes_its_edit(finished, resect, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    made = resect("edit", run, "--arm", "standard", "--json").json
    study = artifacts.read_json(run / "study.json")
    assert made == study["arms"]["standard"]
    assert artifacts.read_json(run / "edit.json")["arm"] == "standard"
    files = artifacts.read_json(run / "manifest.json")["files"]
    proof = artifacts.read_json(run / "edit_proof.json")
    assert (proof["arm"], proof["faults"]) == ("standard", [])
    assert "edit of arm <b>standard</b>" in (run / "report.html").read_text()
    assert files["edit.json"] != artifacts.read_json(finished[0] / "manifest.json")["files"]["edit.json"]


@pytest.mark.parametrize("stage", ["directions", "cleaning", "evaluate"])
def test_a_finished_study_stays_as_it_is(finished, refuses, stage):
    run, name = finished[0], stage.replace("evaluate", "evaluation")
    message = f"{run} holds a finished study, so its {name} stays as it is; make another folder with: resect activations MODEL --out DIR"
    refuses(stage, run, message=message)


def test_stages_out_of_order_name_the_missing_one(staged, refuses, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(staged[0], run)
    (run / "cleaning.safetensors").unlink()
    (run / "evaluation.json").unlink()
    refuses("edit", run, message=f"{run} has no cleaning yet; make it with: resect cleaning {run} (--method none keeps the raw direction)")
    (run / "directions.safetensors").unlink()
    refuses("cleaning", run, message=f"{run} has no directions yet; make them with: resect directions {run}")
    (run / "edit.json").unlink()
    refuses("evaluate", run, message=f"{run} has no edit yet; make one with: resect edit {run}")
    refuses(
        "report",
        run,
        message=f"{run} has activations and lacks directions, cleaning, edit, evaluation and the study of all arms, which the report "
        f"is about; run resect sra with the same model, prompts and settings and --out {run} to finish it: "
        "what is done is not computed again.",
    )
    (run / "run.toml").unlink()
    message = f"{run} is no run folder (it has no run.toml); make one with: resect activations MODEL --out {run}"
    refuses("report", run, message=message)
    refuses("cleaning", run, message=message)


def test_wrong_names_and_numbers_of_stages(staged, refuses):
    run = staged[0]
    refuses(
        "cleaning",
        run,
        "--method",
        "projekted",
        message="Unknown cleaning method 'projekted'; did you mean 'projected'? "
        "Allowed: combined, none, projected, random_atoms, sra, whitened.",
    )
    refuses("cleaning", run, "--lam=-1", message="lambda must be 0 or more, got -1; 0 projects out exactly, larger values remove less.")
    refuses("cleaning", run, "--method", "none", "--lam", "1", message="The standard direction has no lambda; leave --lam out.")
    refuses("edit", run, "--arm", "sre", message="Unknown arm of this run 'sre'; did you mean 'sra'? Allowed: sra, standard.")
    refuses("edit", run, "--strength", "0", message="The strength must be above 0, got 0; 1 removes the component, 2 reflects it.")
    refuses("edit", run, "--source", "9", message="Layer 9 does not exist: the model has 6 blocks; layers go from 0 to 5.")
    refuses("edit", run, "--source", "top", message="--source takes per_layer or the index of a layer, got 'top'; for example --source 14.")
    message = "--window takes layers as FIRST-LAST with FIRST <= LAST, or one layer, got '3-1'; for example --window 4-20."
    refuses("edit", run, "--window", "3-1", message=message)
