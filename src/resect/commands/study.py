"""`resect demo` and `resect sra`: settings and files in, run folder, table and report out."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from resect import artifacts
from resect.activations import Named
from resect.cache import open_cache
from resect.commands import console
from resect.commands.inputs import Sources, check_architecture, open_run
from resect.config import SRAConfig, load_config, make_config
from resect.errors import UserError, unknown_name
from resect.report.build import build_report
from resect.report.table import summary_table
from resect.run import finish, run_sra

ORGANISM_SETTINGS: dict[str, Any] = {
    "max_new_tokens": 32,
    "opening_tokens": 12,
    "kl_tokens": 8,
    "keep_text": True,
    "validation_prompts": 40,
    "windows": [[0.0, 1.0]],
    "source_layers": [0.4, 0.6, 0.8],
    "strengths": [0.75, 1.0, 1.25, 1.5, 2.0, 3.0],
    "curve_strengths": [0.5, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0, 2.5, 3.0],
}
"""Organisms have six layers and answer in a few words of a harmless language: a shorter grid, and texts may be kept."""


def collect(config: Path | None, pairs: Sequence[str], named: dict[str, Any]) -> dict[str, Any]:
    """Return the settings: the file's, then `--set NAME=VALUE`, then named options, later ones winning."""
    merged = load_config(config) if config else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {pair!r}; for example --set passes=2.")
        merged[name.strip()] = _toml_value(name.strip(), value.strip())
    return merged | {name: value for name, value in named.items() if value is not None}


def resolve(sources: Sources, given: dict[str, Any]) -> SRAConfig:
    """Return the checked settings; an organism has other defaults than a model."""
    return make_config(ORGANISM_SETTINGS | given if sources.organism else given)


def _toml_value(name: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text and all(c.isalnum() or c in "_-./" for c in text):
            return text
        raise UserError(f"--set {name}={text} is not a TOML value; quote texts, and write lists as [1, 2].") from None


def position(text: str | None) -> str | int | None:
    """Return a position option as the settings want it: a number where it is one."""
    if text is None or text in get_args(Named):
        return text
    if text.lstrip("-").isdigit():
        return int(text)
    raise unknown_name("position", text, [*get_args(Named), "-1"])


def run_study(
    sources: Sources,
    given: dict[str, Any],
    *,
    out: Path,
    device: str = "auto",
    trust_remote_code: bool = False,
    no_cache: bool = False,
    as_json: bool = False,
    architecture: str | None = None,
) -> None:
    """Run the study into a folder with its report, and show the table, the forecast and what the gain is made of.

    `architecture` is what the model has to be, where a recipe says so.
    """
    config, cache = resolve(sources, given), None if no_cache else open_cache()
    console.quiet_libraries()
    load = sources.prepare(config, device=device, trust_remote_code=trust_remote_code)
    with console.progress("SRA study", total=16 + 3 * len(config.arms) + len(config.lam_sweep)) as step:
        step("loading")
        inputs = load()
        check_architecture(inputs.model, architecture)
        open_run(sources, inputs, config, out)
        result = run_sra(inputs, config, out, on_step=step, cache=cache)
        step("report")
        page = build_report(out, cache=cache)
        finish(out)
    if as_json:
        console.show_json(artifacts.read_json(out / "evaluation.json"))
        return
    console.show(summary_table(result.evaluation, result.study))
    console.say(result.study["forecast"]["sentence"])
    console.say(result.study["decomposition"]["sentence"])
    console.say(f"Report: {page}")
