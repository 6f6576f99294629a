"""Seven words name the stages everywhere; the pages say what the code says. Run as a script, it writes the table of settings anew."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SRC, DOCS = ROOT / "src" / "resect", ROOT / "docs"
WORDS = ("prompts", "activations", "directions", "cleaning", "edit", "evaluation", "report")
# A command is a verb where the word is not one already. Prompts are files that the user brings: no command makes them.
COMMANDS = {"activations": "activations", "directions": "directions", "cleaning": "cleaning", "edit": "edit"}
COMMANDS |= {"evaluation": "evaluate", "report": "report"}
# What each stage leaves in a run folder. Of the prompts only hashes are kept, in the headers of the files made from them.
FILES = {
    "activations": {"activations/about.json"},
    "directions": {"directions.safetensors"},
    "cleaning": {"cleaning.safetensors"},
    "edit": {"edit.json", "edit.safetensors", "edit_proof.json"},
    "evaluation": {"evaluation.json"},
}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_each_word_is_a_module_or_a_package() -> None:
    for word in WORDS:
        assert (SRC / f"{word}.py").is_file() != (SRC / word / "__init__.py").is_file(), word


def test_each_word_is_a_section_of_the_maths_and_nothing_else_is() -> None:
    assert tuple(re.findall(r"^## (.+)$", page("maths.md"), flags=re.MULTILINE)) == WORDS


def test_each_stage_has_its_command() -> None:
    from resect.cli import app

    names = {c.name or (c.callback.__name__ if c.callback else "") for c in app.registered_commands}
    assert set(COMMANDS) == set(WORDS) - {"prompts"}
    assert set(COMMANDS.values()) <= names
    assert "prompts" not in names


def test_each_stage_leaves_files_of_its_name() -> None:
    from resect.stages import STAGES

    assert {stage: set(files) for stage, files in STAGES.items()} == FILES
    assert list(STAGES) == list(WORDS[1:-1])
    for word, names in FILES.items():
        assert all(name.startswith(word) for name in names)
    assert '"report.html"' in (SRC / "report" / "build.py").read_text(encoding="utf-8")


def test_the_readme_gives_the_words_in_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert " → ".join(WORDS) in readme
    assert " → ".join(WORDS) in page("maths.md").replace("\n", " ")


def test_the_maths_names_every_trap_and_source() -> None:
    text = page("maths.md")
    assert [f"T{n}" for n in range(1, 14)] == sorted(re.findall(r"\*\*(T\d+)\b", text), key=lambda t: int(t[1:]))
    assert {"2601.08489", "2601.16034", "2603.22061", "2406.11717"} <= set(re.findall(r"arXiv (\d{4}\.\d{5})", text))


def test_every_format_is_in_the_table_of_versions() -> None:
    used = {f for path in SRC.rglob("*.py") for f in re.findall(r'"(resect\.\w+/\d+)"', path.read_text(encoding="utf-8"))}
    listed = set(re.findall(r"^\| `(resect\.\w+/\d+)` \|", page("formats.md"), flags=re.MULTILINE))
    assert used == listed


def test_the_columns_of_prompt_files_and_atoms_are_listed() -> None:
    from resect import atoms
    from resect.prompts import TEXT_COLUMNS, loading

    text = page("formats.md")
    for name in (*TEXT_COLUMNS, *(n for names in loading._FIELDS.values() for n in names), *atoms._FIELDS):
        assert f"`{name}`" in text, name


def test_every_arm_is_in_the_contract() -> None:
    from resect.config import ARMS
    from resect.studies import arms

    assert tuple(arms.ARMS) == ARMS
    for arm in ARMS:
        assert f"`{arm}`" in page("formats.md"), arm
        assert f"`{arm}`" in page("maths.md"), arm


def test_every_dependency_has_its_reason() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    reasons = page("decisions.md")
    for name in (re.split(r"[<>=\[]", item)[0] for item in wanted):
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", reasons), name


TABLES = {"settings": "SRAConfig", "contrast": "ContrastConfig"}


def settings_table(name: str) -> str:
    """Return a table of settings as docs/formats.md holds it, from the fields of a configuration."""
    from resect import config

    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field_name, field in getattr(config, TABLES[name]).model_fields.items():
        value = config.dump_toml({field_name: field.default}).removeprefix(f"{field_name} = ").strip()
        rows.append(f"| `{field_name}` | {f'`{value}`' if value else 'unset'} | {(field.description or '').replace(chr(10), ' ')} |")
    return "\n".join(rows)


def _between(text: str, name: str) -> tuple[str, str, str]:
    head, start, rest = text.partition(f"<!-- {name} -->\n")
    table, end, tail = rest.partition(f"<!-- /{name} -->")
    assert start
    assert end
    return head + start, table.rstrip("\n"), end + tail


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_in_the_page_as_the_code_has_it(name: str) -> None:
    assert _between(page("formats.md"), name)[1] == settings_table(name), "run: python tests/test_vocabulary.py"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_is_valid(path: Path) -> None:
    from resect.atoms import load_atom, shipped_atoms
    from resect.config import SRAConfig, dump_toml, load_config, make_config

    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if "role" in data:
        atom = load_atom(path)
        shipped = {text for a in shipped_atoms() for text in (*a.positive, *a.negative)}
        assert not shipped & {*atom.positive, *atom.negative}
        assert abs(len(atom.positive) - len(atom.negative)) == 0
        return
    config = make_config(load_config(path))
    assert config != SRAConfig(), "an example that changes nothing shows nothing"
    assert make_config(tomllib.loads(dump_toml(config.model_dump()))) == config
    assert config.gamma_atom in {None, *(a.name for a in shipped_atoms())}


def test_organisms_start_from_settings_that_exist() -> None:
    from resect.commands import study
    from resect.config import make_config

    make_config(study.ORGANISM_SETTINGS)


def test_wrong_settings_are_named() -> None:
    from resect.config import make_config
    from resect.errors import UserError

    with pytest.raises(UserError, match="Unknown setting 'pases'; did you mean 'passes'"):
        make_config({"pases": 2})
    with pytest.raises(UserError, match=r"Setting 'passes' is wrong: .* got 0"):
        make_config({"passes": 0})
    with pytest.raises(UserError, match="Unknown arm 'sro'; did you mean 'sra'"):
        make_config({"arms": ["sro"]})
    with pytest.raises(UserError, match="each once"):
        make_config({"arms": ["sra", "sra"]})
    with pytest.raises(UserError, match="negative integer"):
        make_config({"position": 3})
    with pytest.raises(UserError, match="0 <= first < last <= 1"):
        make_config({"windows": [[0.5, 0.5]]})
    with pytest.raises(UserError, match="strengths must hold at least one number, all above 0"):
        make_config({"strengths": [0.0, 1.0]})
    with pytest.raises(UserError, match="none below 0"):
        make_config({"lams": [-1.0]})
    with pytest.raises(UserError, match="must be below text_context"):
        make_config({"text_stride": 600})


def test_the_words_are_spelled_alike() -> None:
    """British spelling, but for names that code or other projects give."""
    american = re.compile(r"\b\w*(normaliz|generaliz|behavior(?!`)|randomiz|tokeniz(?!er)|color|summariz|analyz)\w*", re.IGNORECASE)
    for path in [ROOT / "README.md", *DOCS.glob("*.md")]:
        found = american.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found.group(0) if found else ''}"


if __name__ == "__main__":
    for table in TABLES:
        before, _, after = _between(page("formats.md"), table)
        (DOCS / "formats.md").write_text(f"{before}{settings_table(table)}\n{after}", encoding="utf-8")
