"""Settings in TOML files: read, checked, written."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from resect.errors import UserError, unknown_name

C = TypeVar("C", bound=BaseModel)


def checked(kind: type[C], settings: dict[str, Any]) -> C:
    """Return the checked settings; raises `UserError` naming the first wrong one, with the nearest valid name."""
    for name in settings:
        if name not in kind.model_fields:
            raise unknown_name("setting", name, kind.model_fields)
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"Setting {where!r} is wrong: {first['msg']}; got {first['input']!r}.") from error


def load_config(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, unchecked (give them to `make_config`)."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read settings file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Settings file {path} is not valid TOML: {error}.") from error


def dump_toml(settings: dict[str, Any]) -> str:
    """Return settings as TOML text, keys in the given order; None is left out (TOML has no null)."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in settings.items() if value is not None)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON strings are TOML basic strings, but for the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    raise TypeError(f"no TOML form for {type(value).__name__}")
