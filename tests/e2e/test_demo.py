"""The demo: files, repeatability, a killed run that goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from resect import artifacts
from resect.config.base import SHORTCUTS, UNMEASURED
from resect.generation import decoding


def manifest(run):
    return json.loads((run / "manifest.json").read_text())["files"]


def test_the_demo_prints_the_table_and_the_path_of_the_report(finished):
    run, outcome = finished
    assert outcome.out.splitlines()[-1] == f"Report: {run / 'report.html'}"
    for word in ("base", "standard", "sra", "refused", "recovery", "leaning is expected"):
        assert word in outcome.out
    assert "SRA study: selection_sra" in outcome.err


def test_the_run_folder_holds_what_the_formats_promise(finished):
    run, _ = finished
    names = {
        "run.toml",
        "sources.json",
        "directions.safetensors",
        "cleaning.safetensors",
        "edit.json",
        "edit.safetensors",
        "edit_proof.json",
    }
    names |= {"evaluation.json", "study.json", "samples.jsonl", "report.html"}
    assert names <= set(manifest(run))
    evaluation = artifacts.read_json(run / "evaluation.json")
    assert evaluation["format"] == "resect.evaluation/1"
    assert set(evaluation["arms"]) == {"base", "standard", "sra"}
    for name, arm in evaluation["arms"].items():
        for measure in ("refusal_rate", "benign_refusal_rate", "kl_first_token", "kl_tokens", "recovery"):
            floor = {"floor"} if name != "base" and measure.startswith("kl_") else set()
            assert set(arm[measure]) == {"value", "low", "high", "n", "unit"} | floor
            assert not floor or arm[measure]["value"] > 1e6 * arm[measure]["floor"] > 0
    assert evaluation["arms"]["base"]["refusal_rate"]["value"] > evaluation["arms"]["sra"]["refusal_rate"]["value"]
    vectors = artifacts.load_tensors(run / "directions.safetensors", format="resect.directions/1", axes={"vectors": 3})[0]["vectors"]
    assert vectors.shape[:2] == (6, 1)


def test_two_runs_give_the_same_files_but_for_the_times(finished, resect, small, tmp_path):
    run, _ = finished
    again = resect("demo", "--out", tmp_path / "again", *small, "--json")
    assert again.code == 0
    assert again.json == artifacts.read_json(run / "evaluation.json")
    assert manifest(tmp_path / "again") == manifest(run)


def test_the_number_of_processes_changes_no_figure(finished, resect, small, tmp_path):
    run, _ = finished
    assert resect("demo", "--out", tmp_path / "one", *small, "--set", "processes=1").code == 0
    assert resect("demo", "--out", tmp_path / "two", *small, "--set", "processes=2").code == 0
    one, two, own = (manifest(place) for place in (tmp_path / "one", tmp_path / "two", run))
    told = {name for name in own if not one[name] == two[name] == own[name]}
    assert told == {"run.toml", "report.html"}  # which say the setting


def test_a_fixed_cache_changes_no_figure_and_graphs_say_that_there_is_no_gpu(finished, resect, small, tmp_path, caplog):
    run, out = finished[0], tmp_path / "run"
    decoding.note_once.cache_clear()
    shortcuts = f"shortcuts={json.dumps([*SHORTCUTS, *UNMEASURED])}"
    assert resect("demo", "--out", out, *small, "--set", shortcuts, "--set", "processes=1").code == 0
    said = [record.getMessage() for record in caplog.records if record.module == "decoding"]
    assert len(said) == 2  # once for the model, once for its twin
    assert all("is not on one CUDA device, so the shortcut graphs does nothing" in line for line in said)
    assert {name for name, at in manifest(run).items() if manifest(out)[name] != at} == {"run.toml", "report.html"}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(finished, resect, small, tmp_path):
    run, out, after = finished[0], tmp_path / "run", "selection_standard.json"
    command = [sys.executable, "-c", "from resect.cli import main; main()", "demo", "--out", str(out), *small]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(out.rglob(after)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert list(out.rglob(after))
    assert not (out / "manifest.json").exists()
    # What a write in progress leaves behind.
    (out / "steps" / ".passes.json.1.tmp").write_text("{")
    assert resect("demo", "--out", out, *small).code == 0
    assert manifest(out) == manifest(run)
    assert (out / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_a_finished_run_is_read_back_and_not_computed_again(finished, resect, small, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    assert resect("demo", "--out", out, *small).code == 0
    assert artifacts.read_json(out / "timings.json")["seconds"] == {}
    assert manifest(out) == manifest(finished[0])


def test_the_report_can_be_built_again(finished, resect):
    run, _ = finished
    page, files = (run / "report.html").read_bytes(), manifest(run)
    (run / "report.html").unlink()
    assert resect("report", run).out == f"Report: {run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == page
    assert manifest(run) == files
