"""Rows of prompt files: one reader per format, each row with the place it stands at."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resect.errors import UserError

Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 7"), cells by column


def read_rows(path: Path, *, columns: Callable[[str], bool]) -> Iterator[Row]:
    """Return the rows of a file by its extension; `columns` says which columns are wanted, where leaving others out saves memory.

    Raises:
        UserError: missing or empty file, unknown extension, malformed content with file and line.
    """
    if not path.is_file():
        raise UserError(f"There is no prompt file {path}; give an existing file or a Hub id such as owner/name:split:column.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path, columns)
    if suffix not in _READERS:
        allowed = ", ".join(sorted([*_READERS, ".parquet"]))
        raise UserError(f"The prompt file {path} has the unknown extension {suffix or '(none)'!r}; allowed are {allowed}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return _READERS[suffix](path, text)


def _jsonl(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, {where}: not valid JSON ({error.msg} at column {error.colno}); every line must hold one JSON object."
                ) from error
            yield where, _cells(path, where, value)


def _json(path: Path, text: str) -> Iterator[Row]:
    try:
        data = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); the file must hold one JSON list.") from error
    if not isinstance(data, list):
        raise UserError(f"{path} must hold a JSON list of objects or texts, found {type(data).__name__}; wrap the prompts in a list.")
    for number, value in enumerate(data, start=1):
        yield f"entry {number}", _cells(path, f"entry {number}", value)


def _cells(path: Path, where: str, value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise UserError(f'{path}, {where}: expected a JSON object, found {type(value).__name__}; write one such as {{"text": …}}.')


def _table(path: Path, text: str) -> Iterator[Row]:
    # csv must see the line ends itself, and only real ones: cells may hold them.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row:
                raise UserError(f"{path}, {where}: more cells than the header has columns; quote cells that hold the delimiter.")
            yield where, row
    except csv.Error as error:
        # The reader counts a line once it is read whole.
        raise UserError(f"{path}, after line {reader.line_num}: not a valid table ({error}); save it again as CSV.") from error


def _lines(path: Path, text: str) -> Iterator[Row]:
    del path
    return ((f"line {n}", {"text": line.rstrip("\r")}) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


def _parquet(path: Path, columns: Callable[[str], bool]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            kept = [name for name in names if columns(name)]
            number = 0
            for batch in file.iter_batches(columns=kept):
                for row in batch.to_pylist():
                    number += 1
                    # Columns that were not read still belong in the message about a missing one.
                    yield f"row {number}", dict.fromkeys(names) | row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
}
