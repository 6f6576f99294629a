"""Every word of the README that can be run is run, and the tree in it is the tree on disk."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resect import atoms
from resect.organism.shipped import load_organism
from resect.prompts import PromptSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
CI_LINES = [shlex.split(line, comments=True) for line in CI.splitlines()]

# The same commands with less work in them. Nothing else is added to what the README says.
SMALL = {
    "arms": '["standard", "sra"]',
    "lams": "[1.0]",
    "strengths": "[2.0]",
    "curve_strengths": "[1.0, 2.0]",
    "lam_sweep": "[]",
    "source_layers": "[0.8]",
    "windows": "[[0.0, 1.0]]",
    "finalists": "1",
    "passes": "1",
    "ceilings": "false",
    "extract_prompts": "40",
    "validation_prompts": "8",
    "test_prompts": "8",
    "capability_prompts": "2",
    "max_new_tokens": "16",
}
SETTINGS = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
SMALL_CONTRAST = {
    "baselines": '["unmatched", "matched"]',
    "methods": '["mean_difference"]',
    "variants": "[]",
    "weights": "[1.2]",
    "curve_weights": "[1.2]",
    "pair_layers": "0",
    "extract_prompts": "40",
    "validation_prompts": "8",
    "test_prompts": "8",
    "paper_prompts": "4",
    "shares": "[]",
    "sizes": "[]",
    "opening_tokens": "12",
    "max_new_tokens": "16",
}
CONTRAST = [part for name, value in SMALL_CONTRAST.items() for part in ("--set", f"{name}={value}")]
ADDED = {"demo": SETTINGS, "sra": [*SETTINGS, "--atoms", "atoms"], "activations": SETTINGS, "contrast": CONTRAST}


def blocks(language: str) -> list[str]:
    # Every block is read, so that none is taken to begin where another ends.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def commands() -> list[list[str]]:
    """Return the commands of the README's bash blocks, in order."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def write_prompts(path: Path, prompts: PromptSet) -> None:
    rows = ({"text": p.text, "category": p.category, "pair_id": p.pair_id} for p in prompts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's commands name: the organism as a plain model folder, prompt files, and its atoms as files."""
    place = tmp_path_factory.mktemp("readme")
    organism = load_organism()
    (place / "path" / "to").mkdir(parents=True)
    (place / "path" / "to" / "model").symlink_to(organism.folder / "aligned", target_is_directory=True)
    write_prompts(place / "harmful.jsonl", organism.language.harmful("extract"))
    write_prompts(place / "harmless.jsonl", organism.language.harmless("extract"))
    write_prompts(place / "matched.jsonl", organism.language.matched("extract"))
    (place / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    (place / "atoms").mkdir()
    for atom in organism.language.atoms():
        fields = {"format": atoms.FORMAT, "name": atom.name, "role": atom.role, "positive": atom.positive, "negative": atom.negative}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
        (place / "atoms" / f"{atom.name}.toml").write_text(text, encoding="utf-8")
    return place


# One process for all commands, through the same entry point as the `resect` script.
RUNNER = """
import io, json, pathlib, sys
from resect import cli
ends = []
for words in json.loads(sys.argv[1]):
    sys.argv, sys.stdin = words, io.StringIO("squent the gate\\n/quit\\n")
    print("$", *words, flush=True)
    try:
        cli.main()
    except SystemExit as end:
        ends.append(int(end.code or 0))
pathlib.Path("ends.json").write_text(json.dumps(ends))
"""


def run_all(folder: Path, lines: list[list[str]]) -> tuple[list[int], str]:
    """Run command lines in the folder, in order, and return their exit statuses and what was printed."""
    settled = [[*words, *ADDED.get(words[1], [])] for words in lines]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(settled)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown[-4000:]
    return json.loads((folder / "ends.json").read_text()), shown


def test_the_two_commands_are_what_ci_executes() -> None:
    """Installation and tests cannot run inside the tests; `.ci/run` runs them, and these words are held to it."""
    install = next(line for line in CI_LINES if line[:2] == ["pip", "install"])
    tests = next(line for line in CI_LINES if line[:1] == ["pytest"])
    quiet = {"-q", "--disable-pip-version-check"}
    seen = []
    for words in commands():
        if words[:2] == ["pip", "install"]:
            wanted = [w for w in install if w not in quiet]
            assert [w.replace(".[dev]", ".") for w in words] == [w.replace(".[dev]", ".") for w in wanted]
        elif words[0] == "pytest":
            assert words == tests[: len(words)]
        elif words[0] in {"python3", "."}:
            assert words in (["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"])
            assert any(line[: len(words) - 1] == words[:-1] and line[-1].endswith(words[-1].removeprefix(".")) for line in CI_LINES if line)
        else:
            assert words[0] == "resect", f"{words[0]} is a command that no test runs"
        seen.append(words[0])
    assert seen[:5] == ["python3", ".", "pip", "resect", "pip"]
    assert ["resect", "demo"] in [line[:2] for line in CI_LINES]


def test_the_readmes_commands_run_in_order(folder: Path) -> None:
    lines = [words for words in commands() if words[0] == "resect"]
    ends, shown = run_all(folder, [*lines, ["resect", "organism", "list"], ["resect", "organism", "train", "--help"]])
    assert ends == [0] * (len(lines) + 2), shown[-4000:]
    for run in ("demo", "my-model", "contrast"):
        assert (folder / "runs" / run / "report.html").stat().st_size > 10_000
        assert json.loads((folder / "runs" / run / "manifest.json").read_text())["format"] == "resect.run/1"
    assert (folder / "edited-model" / "README.md").is_file()
    undocumented(folder / "runs")


def undocumented(runs: Path) -> None:
    """Check that docs/formats.md names every file and every field that the runs hold."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for path in (p for run in runs.iterdir() for p in run.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        assert f"`{name}`" in text, f"docs/formats.md does not say what {name} is"
    study = json.loads((runs / "my-model" / "study.json").read_text())
    sample = json.loads((runs / "demo" / "samples.jsonl").read_text().splitlines()[0])
    contrast = json.loads((runs / "contrast" / "contrast.json").read_text())
    for field in (*contrast, *contrast["prompts"], *contrast["protocol"], *contrast["geometry"], *next(iter(contrast["arms"].values()))):
        assert f"`{field}`" in text, f"docs/formats.md does not name {field}"
    arm = next(iter(study["arms"].values()))
    for field in (*study, *arm, *sample, *study["matched"], *study["forecast"], *study["decomposition"], *study["passes"][0]):
        assert f"`{field}`" in text, f"docs/formats.md does not name {field}"


def test_the_commands_in_running_text_exist() -> None:
    from resect import cli

    groups = [cli.app, *(g.typer_instance for g in cli.app.registered_groups if g.typer_instance)]
    names = {c.name or (c.callback.__name__ if c.callback else "") for group in groups for c in group.registered_commands}
    spans = [shlex.split(span) for span in re.findall(r"`(resect [a-z][^`]*)`", README)]
    assert spans
    for words in spans:
        name = words[2] if words[1] in ("organism", "cache") else words[1]
        assert name in names, f"there is no command {shlex.join(words)}"


def test_the_python_example_prints_what_it_claims() -> None:
    (example,), (claimed,) = blocks("python"), blocks("text")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert shown.getvalue() == claimed
    before, after = map(int, claimed.split()[-2:])
    assert before >= 38
    assert after == 0


def test_the_python_example_is_short() -> None:
    (example,) = blocks("python")
    body = example.partition("\n\n")[2]
    statements = [line for line in body.splitlines() if line.strip() and not line.startswith((" ", "print"))]
    assert len(statements) <= 12


def tree() -> set[str]:
    """Return the files named in the README's tree, each of which has its phrase."""
    block = next(b for b in blocks("") if b.startswith("src/resect/"))
    found: set[str] = set()
    parents: list[str] = []
    for line in block.splitlines()[1:]:
        indent = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, phrase = line.strip().partition(" ")
        assert phrase.strip(), f"{name} has no phrase"
        parents = parents[:indent]
        if name.endswith("/"):
            parents.append(name)
        else:
            found.add("".join(parents) + name)
    return found


def test_the_tree_is_the_folder() -> None:
    source = ROOT / "src" / "resect"
    there = {p.relative_to(source).as_posix() for p in source.rglob("*.py") if p.name != "__init__.py"}
    assert tree() == there


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_pages_mention_no_machine() -> None:
    for page in [ROOT / "README.md", ROOT / "CITATION.cff", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").iterdir()]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:/])/(work|home|root|tmp|Users)/", text), page.name
