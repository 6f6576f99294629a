"""`resect recipe`: a study of a model as one file, with what only its user knows left to fill in."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from resect.commands import contrast, study
from resect.commands.inputs import Sources
from resect.errors import UserError, unknown_name

FORMAT = "resect.recipe/1"
FILL = "FILL IN"
"""How a value begins that the user has to give."""
Study = Literal["sra", "contrast"]
FILES: Mapping[Study, tuple[str, ...]] = {"sra": ("harmful", "harmless"), "contrast": ("harmful", "matched", "unmatched")}
"""Prompt files that each study needs."""
OPTIONAL = ("dtype", "atoms", "questions", "text")
_TEXTS = ("architecture", "model", "revision", "dtype", "text", "harmful", "harmless", "matched", "unmatched")


@dataclass(frozen=True)
class Recipe:
    """What a study of one model is: sources by name (a value that begins with `FILL` is not known yet), and settings."""

    path: Path
    study: Study
    architecture: str
    sources: Mapping[str, Any]
    settings: Mapping[str, Any]

    def filled(self, given: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the sources with what was given in place of what the file says; a local folder needs no revision.

        Raises:
            UserError: a value is still to be filled in.
        """
        found = {**self.sources, **{name: value for name, value in given.items() if value is not None}}
        if Path(found["model"]).is_dir() and str(found["revision"]).startswith(FILL):
            del found["revision"]
        for name, value in found.items():
            if isinstance(value, str) and value.startswith(FILL):
                wanted = value.removeprefix(FILL).lstrip(": ")
                raise UserError(f"{self.path} leaves {name} to fill in ({wanted}); write it into the file, or give --{name}.")
        return found


def read_recipe(path: Path) -> Recipe:
    """Return a recipe.

    Raises:
        UserError: missing file, malformed TOML, another format, an unknown study or field, a missing field, a value of the wrong kind.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read recipe {path}: {error.strerror}; recipes/ has some to start from.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Recipe {path} is not valid TOML: {error}.") from error
    if values.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a recipe: its format must be {FORMAT!r}; settings alone are given with --config.")
    kind, architecture, settings = values.pop("study", None), values.pop("architecture", None), values.pop("settings", {})
    found = next((s for s in get_args(Study) if s == kind), None)
    if found is None:
        raise unknown_name("study", str(kind), get_args(Study))
    needed = ("model", "revision", *FILES[found])
    for name in values:
        if name not in (*needed, *OPTIONAL):
            raise unknown_name("recipe field", name, (*needed, *OPTIONAL))
    missing = [name for name in needed if name not in values] + ([] if architecture else ["architecture"])
    if missing:
        raise UserError(f"Recipe {path} has no {missing[0]}; write it, or {FILL!r} where each user gives it.")
    for name, value in {**values, "architecture": architecture}.items():
        if name in _TEXTS and not isinstance(value, str):
            raise UserError(f"{name} in recipe {path} must be a text, found {value!r}.")
    return Recipe(path, found, architecture, values, settings)


def run_recipe(
    recipe: Recipe,
    given: Mapping[str, str | None],
    pairs: list[str],
    *,
    out: Path,
    device: str = "auto",
    trust_remote_code: bool = False,
    no_cache: bool = False,
    as_json: bool = False,
) -> None:
    """Run the recipe's study into a folder; raises what the study's own command raises, and for a model of another architecture."""
    named = recipe.filled(given)
    settings = {**recipe.settings, **study.collect(None, pairs, {})}
    where: dict[str, Any] = {"out": out, "device": device, "trust_remote_code": trust_remote_code, "no_cache": no_cache, "as_json": as_json}
    if recipe.study == "contrast":
        contrast.run_study(contrast.ContrastSources(**named), settings, **where, architecture=recipe.architecture)
        return
    named |= {name: tuple(named[name]) for name in ("atoms", "questions") if name in named}
    study.run_study(Sources(**named), settings, **where, architecture=recipe.architecture)
