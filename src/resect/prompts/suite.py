"""Suite files: what a checkpoint is scored on, one row each: harmful and harmless prompts, questions with answers, plain texts."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from resect.errors import UserError, unknown_name
from resect.prompts.files import read_rows
from resect.prompts.splits import check_disjoint
from resect.prompts.values import Prompt, PromptSet

Kind = Literal["harmful", "harmless", "question", "text"]
Grade = Literal["exact", "code"]
"""How a response to a question is graded: equal to the reference, or a function that does what the reference's does (organisms only)."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_FIELDS = ("id", "kind", "text", "reference", "grade", "category", "system")


@dataclass(frozen=True)
class Suite:
    """Prompts by what they ask, questions with the way each is graded (None: by its likelihood only), and plain texts."""

    harmful: PromptSet
    harmless: PromptSet
    questions: PromptSet
    grades: tuple[Grade | None, ...]
    texts: tuple[str, ...]
    dropped: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything in it, in order."""
        parts = [self.harmful.fingerprint, self.harmless.fingerprint, self.questions.fingerprint, *map(str, self.grades), *self.texts]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind."""
        return dict(zip(KINDS, map(len, (self.harmful, self.harmless, self.questions, self.texts)), strict=True))


@dataclass(frozen=True)
class _Row:
    where: str
    name: str | None
    kind: Kind
    prompt: Prompt
    grade: Grade | None


def load_suite(path: Path) -> Suite:
    """Return the suite in a file (format: docs/formats.md); a row that repeats an earlier one is left out and counted.

    Raises:
        UserError: missing, empty or malformed file, a misspelt field, unknown kind or grade, blank text, a question without a reference
            or with two, an id used twice, each with its line; a prompt that is harmful and harmless at once.
    """
    rows = [_row(f"{path}, {where}", cells) for where, cells in read_rows(path, columns=lambda _: True)]
    _check_ids(rows)
    if not rows:
        raise UserError(f'{path} holds no rows; a suite has at least one, such as {{"kind": "harmless", "text": "How do I bake bread?"}}.')
    kept: dict[tuple[str, str, str | None], _Row] = {}
    for row in rows:
        first = kept.setdefault((row.kind, row.prompt.text, row.prompt.system), row)
        if (first.prompt.response, first.grade) != (row.prompt.response, row.grade):
            raise UserError(f"{row.where}: asks what {first.where} asks, with another reference or grade; keep one of the two.")
    found = list(kept.values())

    def prompts(kind: Kind) -> PromptSet:
        return PromptSet(kind, tuple(row.prompt for row in found if row.kind == kind), str(path))

    sides = {kind: prompts(kind) for kind in KINDS}
    check_disjoint({kind: sides[kind] for kind in ("harmful", "harmless")})
    grades: tuple[Grade | None, ...] = tuple(row.grade for row in found if row.kind == "question")
    return Suite(sides["harmful"], sides["harmless"], sides["question"], grades, sides["text"].texts, len(rows) - len(found))


def _check_ids(rows: Sequence[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        if row.name is not None and first.setdefault(row.name, row) is not row:
            raise UserError(
                f"{row.where}: the id {row.name!r} is that of {first[row.name].where}; give every row its own, or leave ids out."
            )


def _row(where: str, cells: Mapping[str, Any]) -> _Row:
    for name in cells:
        # Other columns are nobody's business, but a misspelt one would be lost in silence.
        if name not in _FIELDS and difflib.get_close_matches(name.casefold(), _FIELDS, cutoff=0.8):
            raise unknown_name(f"field in {where}:", name, _FIELDS)
    kind = cells.get("kind")
    if kind not in KINDS:
        raise unknown_name(f"kind in {where}:", str(kind), KINDS)
    text = _text(where, cells, "text")
    if text is None or not text.strip():
        raise UserError(f"{where}: a row needs its 'text', found {cells.get('text')!r}; write what the model is asked or reads.")
    reference = _text(where, cells, "reference")
    if kind == "question" and not (reference or "").strip():
        raise UserError(f"{where}: a question needs a 'reference', the right answer, found {reference!r}; add it, or make it harmless.")
    named = _text(where, cells, "grade")
    if named not in (None, "exact"):
        raise unknown_name(f"grade in {where}:", named, ["exact"])
    grade: Grade | None = "exact" if named else None
    if grade is not None and kind != "question":
        raise UserError(f"{where}: only a question has a grade, and this row is {kind}; leave the grade out.")
    prompt = Prompt(text, _text(where, cells, "category"), None, _text(where, cells, "system"), reference)
    return _Row(where, None if cells.get("id") in (None, "") else str(cells["id"]), kind, prompt, grade)


def _text(where: str, cells: Mapping[str, Any], name: str) -> str | None:
    value = cells.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} must be a text, found {type(value).__name__} {str(value)[:40]!r}; put it in quotes.")
    return value
