import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resect.errors import UserError
from resect.report import svg
from resect.report.build import build_report
from resect.report.figures import FIGURES

HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">&amp; \ud83d'


class Elements(HTMLParser):
    """Collects every tag with its attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, example: ModuleType) -> str:
    return build_report(example.write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, example: ModuleType) -> str:
    run = example.write_run(tmp_path_factory.mktemp("bare"), twin=False, texts=False, layers=3, random_wins=True)
    optional = (
        "passes",
        "lambda_sweep",
        "judges",
        "drift_by_topic",
        "forecast",
        "spectrum",
        "verdicts",
        "drift_quantiles",
        "drift_split",
        "decomposition",
        "prompts",
        "curves",
    )
    return build_report(example.without(run, *optional)).read_text(encoding="utf-8")


def test_every_chart_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: ModuleType) -> None:
    configure, valid = svg.configure, []

    def checked(chart: Any) -> Any:
        valid.append(configure(chart).to_dict())  # altair checks it here, and `render` does not
        return configure(chart)

    monkeypatch.setattr(svg, "configure", checked)
    build_report(example.write_run(tmp_path))
    assert len(valid) == 2 * len(FIGURES) + 2


def test_every_figure_is_drawn_twice_with_its_caption(page: str) -> None:
    parsed = Elements(page)
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2 * len(FIGURES) + 2
    for spec in FIGURES:
        assert spec.caption in parsed.text
        assert spec.missing not in parsed.text


def test_drift_is_split_where_it_was_and_a_test_that_found_nothing_says_how_many_prompts_it_takes(
    page: str, bare: str, example: ModuleType
) -> None:
    assert "about refusing" in page
    assert "The drift was not split in this run." in bare
    assert page.count("2 points need n 1,391") == len(example.KL) - 3


def test_every_arm_is_named_in_its_order(page: str) -> None:
    rows = re.search(r'id="numbers".*?<tbody>(.*?)</tbody>', page, re.S)
    assert rows
    names = [re.sub("<[^>]*>", "", name.partition("<small>")[0]) for name in re.findall(r"<th scope=\"row\"[^>]*>(.*?)</th>", rows[1])]
    assert names == ["base", "standard", "projected", "sra", "whitened", "combined", "standard_sra_strength", "sra_flat", "random_atoms"]


def test_nothing_refers_outside_and_nothing_runs(page: str, bare: str) -> None:
    for text in (page, bare):
        parsed = Elements(text)
        assert not {"script", "link", "img", "iframe", "object", "base", "form", "use", "image"} & {tag for tag, _ in parsed.tags}
        for tag, attributes in parsed.tags:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "xlink:href")], tag
            assert (attributes.get("href") or "#").startswith("#")
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)
        assert "://" not in text


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    tags = Elements(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_every_colour_of_a_chart_follows_the_theme(page: str) -> None:
    charts = " ".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert not re.search(r'(?:fill|stroke)="(?!var\(--[a-z0-9_-]+\)|none|transparent)[^"]', charts)
    used = set(re.findall(r"var\(--([a-z0-9_-]+)\)", page))
    light, _, dark = page.partition("prefers-color-scheme")
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


def test_hostile_output_and_names_are_escaped(tmp_path: Path, example: ModuleType) -> None:
    run = example.write_run(tmp_path / "run", hostile=HOSTILE)
    for name in ("study.json", "evaluation.json"):
        text = (run / name).read_text(encoding="utf-8")
        for known in ("whitened", "test-organism", "curiosity", "wikitext", "free advice"):
            text = text.replace(known, known + "<script>x</script>")
        (run / name).write_text(text, encoding="utf-8")
    parsed = Elements(build_report(run).read_text(encoding="utf-8"))
    assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
    assert parsed.text.count("<script>alert(1)</script>") == 3
    assert "whitened<script>" in parsed.text


def test_missing_parts_are_said_in_words(bare: str) -> None:
    text = Elements(bare).text
    drawn = {"tradeoff", "strength", "perplexity"}
    for spec in FIGURES:
        assert (spec.missing in text) == (spec.name not in drawn), spec.name
    for words in (
        "No forecast was made",
        "there is no helpful twin",
        "The cosines with the atoms were not recorded",
        "Only one judge",
        "was not split",
    ):
        assert words in text


def test_the_edit_proof_is_told_in_a_sentence_and_in_tables(page: str, tmp_path: Path, example: ModuleType) -> None:
    section = Elements(page[page.index('<section id="proof">') : page.index('<section id="capability">')]).text
    assert "All 12 edited writers put out what the edit asks for (largest gap 2.0 × 10⁻⁷ of the output)" in section
    assert section.count("model.layers.") == 24
    assert section.count("asked 25") == 12
    assert "strength 0 at layer 0" in section
    assert "embedding: edited only on request" in section
    run = example.write_run(tmp_path / "run")
    document = json.loads((run / "edit_proof.json").read_text(encoding="utf-8"))
    document["writers"][0]["leak"] = 0.12
    (run / "edit_proof.json").write_text(json.dumps(document), encoding="utf-8")
    assert "Norm preservation leaves 12\N{NO-BREAK SPACE}% more than the strength says" in build_report(run).read_text(encoding="utf-8")
    document["faults"] = ["Block <7> adds the direction."]
    (run / "edit_proof.json").write_text(json.dumps(document), encoding="utf-8")
    failing = build_report(run).read_text(encoding="utf-8")
    assert '<p class="warning loud">The edit proof of this run fails: Block &lt;7&gt; adds the direction.</p>' in failing
    assert "All 12 edited writers" not in failing
    (run / "edit_proof.json").unlink()
    assert "This run has no edit proof" in build_report(run).read_text(encoding="utf-8")


def test_hashes_stand_in_for_texts(bare: str) -> None:
    text = Elements(bare).text
    assert "Texts were not kept" in text
    assert "undefined" not in text.lower()
    assert "None" not in text


def test_the_page_follows_from_the_results_alone(page: str, tmp_path: Path, example: ModuleType) -> None:
    run = example.write_run(tmp_path / "elsewhere")
    (run / "timings.json").write_text('{"seconds": {}, "total": 99.0}', encoding="utf-8")
    again = build_report(run)
    assert again == run / "report.html"
    assert again.read_text(encoding="utf-8") == page
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_large_model_stays_below_three_megabytes(tmp_path: Path, example: ModuleType) -> None:
    assert build_report(example.write_run(tmp_path / "run", layers=64)).stat().st_size < 3_000_000


@pytest.mark.parametrize("name", ["run.toml", "evaluation.json", "study.json", "samples.jsonl"])
def test_an_unfinished_run_names_the_missing_file_and_what_to_run(tmp_path: Path, name: str, example: ModuleType) -> None:
    run = example.write_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"is not a finished run: {re.escape(name)} is missing; .*resect sra MODEL --out"):
        build_report(run)
    assert not (run / "report.html").exists()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a finished run"):
        build_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("study.json", "{", "study.json is not valid JSON"),
        ("study.json", "[]", "has format None, but this version reads 'resect.study/1'"),
        ("edit_proof.json", '{"format": "resect.edit/1"}', "edit_proof.json has format 'resect.edit/1'"),
        ("evaluation.json", '{"format": "resect.evaluation/2"}', "has format 'resect.evaluation/2'"),
        ("evaluation.json", '{"format": "resect.evaluation/1", "model": "m", "arms": {}}', "lacks 'arms'"),
        ("samples.jsonl", '{"arm": "sra"}\nnot json\n', "samples.jsonl, line 2, is not valid JSON"),
        ("samples.jsonl", "[1]\n", "samples.jsonl, line 1, holds list instead of an object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, words: str, example: ModuleType) -> None:
    run = example.write_run(tmp_path / "run")
    (run / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(words)):
        build_report(run)
