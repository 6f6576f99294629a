"""A page that was drawn before comes from the cache, and from nowhere else."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from resect.cache import Cache
from resect.report import build, contrast, sra
from resect.report.build import build_contrast_report, build_report


@pytest.fixture
def run(tmp_path: Path, example: ModuleType) -> Path:
    return example.write_run(tmp_path / "run")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages drawn so far."""
    pages: list[str] = []
    whole = sra.render_sra

    def draw(found: object) -> str:
        pages.append(whole(found))
        return pages[-1]

    monkeypatch.setattr(sra, "render_sra", draw)
    return pages


def test_the_same_run_in_another_folder_is_not_drawn_again(run, cache, drawn, tmp_path):
    first = build_report(run, cache=cache).read_bytes()
    again = build_report(Path(shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("report.html"))), cache=cache)
    assert again.read_bytes() == first == build_report(run).read_bytes()
    assert len(drawn) == 2  # the first, and the one without a cache
    assert [(entry.step, entry.model) for entry in cache.entries()] == [("report", "test-organism (synthetic numbers)")]


@pytest.mark.parametrize("name", ["run.toml", "evaluation.json", "study.json", "samples.jsonl", "edit_proof.json"])
def test_a_byte_in_any_file_makes_another_page(run, cache, drawn, name):
    build_report(run, cache=cache)
    with (run / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    build_report(run, cache=cache)
    assert len(drawn) == 2


def test_a_proof_that_went_is_not_shown(run, cache):
    with_proof = build_report(run, cache=cache).read_text(encoding="utf-8")
    (run / "edit_proof.json").unlink()
    without = build_report(run, cache=cache).read_text(encoding="utf-8")
    assert "This run has no edit proof" in without
    assert "This run has no edit proof" not in with_proof


@pytest.mark.parametrize("what", ["resect", "svg.py", "page.css", "page.html.j2", "altair", "vl-convert-python"])
def test_other_code_or_another_library_draws_another_page(run, cache, drawn, monkeypatch, what):
    build_report(run, cache=cache)
    now = build._drawing()
    monkeypatch.setattr(build, "_drawing", lambda: {**now, what: f"another than {now[what]}"})
    build_report(run, cache=cache)
    assert len(drawn) == 2


def test_the_page_of_a_contrast_run_is_kept_too(tmp_path, cache, monkeypatch):
    found = build.contrast_read.ContrastRun({"model": {"name": "m"}}, "")
    monkeypatch.setattr(build.contrast_read, "read_contrast", lambda _run: found)
    monkeypatch.setattr(contrast, "render_contrast", lambda given: f"page of {given.document['model']['name']}")
    for name, text in (("run.toml", ""), ("contrast.json", "{}")):
        (tmp_path / name).write_text(text)
    assert build_contrast_report(tmp_path, cache=cache).read_text() == "page of m"
    monkeypatch.setattr(contrast, "render_contrast", lambda _given: "another")
    assert build_contrast_report(tmp_path, cache=cache).read_text() == "page of m"
    (tmp_path / "contrast.json").write_text("{ }")
    assert build_contrast_report(tmp_path, cache=cache).read_text() == "another"
