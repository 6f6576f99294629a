"""Prompt files and Hub data sets to `PromptSet`."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resect.errors import UserError
from resect.prompts.files import Row, read_rows
from resect.prompts.values import Prompt, PromptSet

log = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "prompt", "instruction", "question", "goal", "behavior", "behaviour", "request", "query")
"""Where the user's text is looked for, in this order and in any letter case, unless a column is named."""
_FIELDS: dict[str, tuple[str, ...]] = {
    "category": ("category",),
    "pair_id": ("pair_id",),
    "system": ("system", "system_prompt"),
    "response": ("response", "output", "answer", "completion"),
}
_HUB = re.compile(
    r"(?P<path>[^:@\[\]]+)(:(?P<split>[^:@\[\]]+(\[[^\]]*\])?)(:(?P<column>[^:@]+))?)?(@(?P<revision>[^:@]+))?",
)
_KNOWN = frozenset([*TEXT_COLUMNS, "input", *(name for names in _FIELDS.values() for name in names)])


def load_prompts(source: str | Path, *, name: str | None = None, column: str = "auto", limit: int | None = None) -> PromptSet:
    """Return the prompts of a file (jsonl, json list, csv, tsv, parquet, txt) or a Hub data set `owner/name:split:column@revision`.

    Of a Hub id only `owner/name` is required; the split is `train` unless given, and may be written `configuration/split`. A local
    data set folder may stand in the place of `owner/name`. The text is in `column`, else in the first of `TEXT_COLUMNS` that is there;
    after an `instruction` a non-empty `input` is appended. Category, pair id, system prompt and response are kept where present.
    Exact duplicates (text and system prompt) and blank rows are left out, counted in `dropped` and logged. Rows after `limit` prompts
    are not read.

    Raises:
        UserError: missing, empty or malformed file (with its line), unknown extension, missing column, cell that is not text.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The limit on prompts must be at least 1, got {limit}; leave it out to read everything.")
    shown, rows, column, default_name = _open(source, column)
    prompts: dict[tuple[str, str | None], Prompt] = {}
    duplicates = blanks = 0
    for where, cells in rows:
        prompt = _prompt(f"{shown}, {where}", cells, column)
        if prompt is None:
            blanks += 1
        elif (prompt.text, prompt.system) in prompts:
            duplicates += 1
        else:
            prompts[prompt.text, prompt.system] = prompt
        if limit is not None and len(prompts) >= limit:
            break
    if not prompts:
        raise UserError(f"{shown} holds no prompts; give a file with at least one.")
    if duplicates or blanks:
        log.info("%s: %d exact duplicates and %d blank rows left out", shown, duplicates, blanks)
    return PromptSet(name or default_name, tuple(prompts.values()), str(source), duplicates + blanks)


def _open(source: str | Path, column: str) -> tuple[str, Iterator[Row], str, str]:
    """Return how to name the source in messages, its rows, the text column and a name for the set."""
    path = Path(source).expanduser()
    hub = None if path.is_file() else _hub_id(source)
    if hub is None:
        return str(path), read_rows(path, columns=lambda name: _wanted(name, column)), column, path.stem
    column = hub.column or column
    shown = f"{hub.path}:{hub.split}"
    return shown, _hub_rows(hub, column), column, f"{Path(hub.path).name}:{hub.split}"


@dataclass(frozen=True)
class _HubId:
    path: str
    configuration: str | None
    split: str
    column: str | None
    revision: str | None


def _hub_id(source: str | Path) -> _HubId | None:
    """Return the parts of a Hub id or of a local data set folder written alike; None for what can only be a file."""
    match = _HUB.fullmatch(str(source))
    if match is None:
        return None
    path = match["path"]
    is_folder = Path(path).expanduser().is_dir()
    if isinstance(source, Path) and not is_folder:
        return None
    plain = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).suffix.lower() in _FILE_SUFFIXES
    if plain and not is_folder:
        return None
    configuration, _, split = (match["split"] or "train").rpartition("/")
    return _HubId(path, configuration or None, split, match["column"], match["revision"])


_FILE_SUFFIXES = frozenset([".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip", ".xlsx"])


def _hub_rows(hub: _HubId, column: str) -> Iterator[Row]:
    dataset: Any = _load_dataset(hub)
    names = list(dataset.column_names)
    kept = dataset.select_columns([name for name in names if _wanted(name, column)])
    for number, row in enumerate(kept, start=1):
        yield f"row {number}", dict.fromkeys(names) | dict(row)


def _load_dataset(hub: _HubId) -> object:
    import datasets
    from datasets.exceptions import DatasetsError

    path = str(Path(hub.path).expanduser()) if Path(hub.path).expanduser().is_dir() else hub.path
    try:
        return datasets.load_dataset(path, hub.configuration, split=hub.split, revision=hub.revision)
    except (OSError, ValueError, DatasetsError) as error:
        # A failure while reading is wrapped; the cause says what was wrong.
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UserError(
            f"The data set {hub.path} (split {hub.split!r}) cannot be loaded: {lines[0].rstrip('.')}; "
            "write it as owner/name:split:column@revision or owner/name:configuration/split:column, or give an existing file."
        ) from error


def _wanted(name: str, column: str) -> bool:
    return name == column or name.lower() in _KNOWN


def _prompt(where: str, cells: Mapping[str, Any], column: str) -> Prompt | None:
    """Return one row as a prompt, None if its text is blank."""
    by_lower = {str(name).lower(): name for name in reversed(list(cells))}
    chosen = _text_column(where, cells, by_lower, column)
    text = cells[chosen]
    if not isinstance(text, str):
        raise UserError(f"{where}: column {chosen!r} holds {_kind(text)} where text is needed; correct the row or name another column.")
    if not text.strip():
        return None
    if chosen.lower() == "instruction" and "input" in by_lower:
        extra = _optional(where, cells, by_lower["input"])
        text = f"{text}\n\n{extra}" if extra else text
    fields = {
        field: _first(where, cells, [by_lower[n] for n in names if n in by_lower and by_lower[n] != chosen])
        for field, names in _FIELDS.items()
    }
    return Prompt(text, **fields)


def _text_column(where: str, cells: Mapping[str, Any], by_lower: Mapping[str, str], column: str) -> str:
    there = ", ".join(map(str, cells)) or "none"
    if column != "auto":
        if column not in cells:
            raise UserError(f"{where}: there is no column {column!r}; the columns are {there}; name one of them.")
        return column
    for name in TEXT_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise UserError(f"{where}: no column for the text was found among {there}; name one, or call it {TEXT_COLUMNS[0]!r}.")


def _first(where: str, cells: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((value for name in names if (value := _optional(where, cells, name)) is not None), None)


def _optional(where: str, cells: Mapping[str, Any], name: str) -> str | None:
    """Return a cell as text, None where it is empty; numbers are written out, so that pair 3 and pair "3" are one."""
    value = cells[name]
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{where}: column {name!r} holds {_kind(value)} where text is needed; correct the row or leave the column out.")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
