"""`resect demo` and `resect sra`: settings and files in, run folder, table and report out."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resect import artifacts
from resect.atoms import check_registry, load_atoms, shipped_atoms
from resect.commands import console
from resect.config import SRAConfig, load_config, make_config
from resect.errors import UserError
from resect.models.load import load_model
from resect.organism.shipped import is_organism, load_organism
from resect.prompts import PromptSet, load_prompts
from resect.report.build import build_report
from resect.report.table import summary_table
from resect.run import finish, run_sra
from resect.studies.inputs import StudyInputs, from_organism, from_prompts

ORGANISM_SETTINGS: dict[str, Any] = {
    "max_new_tokens": 32,
    "opening_tokens": 12,
    "kl_tokens": 8,
    "keep_text": True,
    "validation_prompts": 48,
    "windows": [[0.0, 1.0], [0.2, 1.0]],
    "source_layers": [0.4, 0.6, 0.8],
    "strengths": [0.5, 1.0, 1.5, 2.0, 3.0],
    "curve_strengths": [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0],
}
"""Organisms have six layers and answer in a few words of a harmless language: a shorter grid, and texts may be kept."""


@dataclass(frozen=True)
class Files:
    """The files of a study as the user named them."""

    harmful: str | None
    harmless: str | None
    atoms: Sequence[Path] = ()
    questions: Sequence[str] = ()
    text: str | None = None


def collect(config: Path | None, pairs: Sequence[str], named: dict[str, Any]) -> dict[str, Any]:
    """Return the settings: the file's, then `--set NAME=VALUE`, then named options, later ones winning."""
    merged = load_config(config) if config else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {pair!r}; for example --set passes=2.")
        merged[name.strip()] = _toml_value(name.strip(), value.strip())
    return merged | {name: value for name, value in named.items() if value is not None}


def _toml_value(name: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text and all(c.isalnum() or c in "_-./" for c in text):
            return text
        raise UserError(f"--set {name}={text} is not a TOML value; quote texts, and write lists as [1, 2].") from None


def position(text: str | None) -> str | int | None:
    """Return a position option as the settings want it: a number where it is one."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def refuse_prompt_files(harmful: str | None, harmless: str | None) -> None:
    """Raise `UserError` if prompt files are given for an organism, which speaks its own language."""
    if harmful or harmless:
        raise UserError("An organism brings its own prompts; leave out --harmful and --harmless.")


def run_on_organism(source: str, *, out: Path, settings: dict[str, Any], as_json: bool) -> None:
    """Run the study on an organism (a folder, or "default" for the shipped one)."""
    # Measured: on a busy two-core machine two threads a tiny matrix product made the study a hundred times slower than one.
    torch.set_num_threads(1)
    config = make_config(ORGANISM_SETTINGS | settings)
    organism = load_organism("default" if source == "default" else Path(source))
    _run(lambda: from_organism(organism, config=config), config, out=out, as_json=as_json)


def run_on_model(model: str, files: Files, *, out: Path, settings: dict[str, Any], load: dict[str, Any], as_json: bool) -> None:
    """Run the study on a model with prompt files; the files are read before the model, so that their mistakes show at once."""
    config = make_config(settings)
    harmful, harmless = (_needed(source, name) for source, name in ((files.harmful, "harmful"), (files.harmless, "harmless")))
    atoms = check_registry(a for path in files.atoms for a in load_atoms(path)) if files.atoms else shipped_atoms()
    questions = dict(_question_file(item) for item in files.questions)
    texts = load_prompts(files.text, name="text").texts if files.text else ()

    def inputs() -> StudyInputs:
        loaded = load_model(model, **load)
        return from_prompts(loaded, harmful=harmful, harmless=harmless, atoms=atoms, config=config, questions=questions, texts=texts)

    _run(inputs, config, out=out, as_json=as_json)


def _needed(source: str | None, name: str) -> PromptSet:
    if source is None:
        raise UserError(f"--{name} is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column.")
    return load_prompts(source, name=name)


def _question_file(item: str) -> tuple[str, PromptSet]:
    name, equals, path = item.partition("=")
    source = path if equals else item
    return (name if equals else Path(source).stem), load_prompts(source, name=name if equals else None)


def _run(inputs: Callable[[], StudyInputs], config: SRAConfig, *, out: Path, as_json: bool) -> None:
    console.quiet_libraries()
    with console.progress("SRA study", total=16 + 3 * len(config.arms) + len(config.lam_sweep)) as step:
        step("loading")
        result = run_sra(inputs(), config, out, on_step=step)
        step("report")
        page = build_report(out)
        finish(out)
    if as_json:
        console.show_json(artifacts.read_json(out / "evaluation.json"))
        return
    console.show(summary_table(result.evaluation, result.study))
    console.say(result.study["forecast"]["sentence"])
    console.say(result.study["decomposition"]["sentence"])
    console.say(f"Report: {page}")


__all__ = ["Files", "collect", "is_organism", "position", "refuse_prompt_files", "run_on_model", "run_on_organism"]
