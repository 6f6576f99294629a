"""How right a judge is: precision and recall per verdict on responses whose verdict people have written down."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from resect.errors import UserError, unknown_name
from resect.evaluation.statistics import Measurement, rate
from resect.evaluation.verdicts import VERDICTS, Verdict
from resect.generation import Response
from resect.models.thinking import answer_of_text

Part = Literal["tuning", "held-out"]
_TEXTS = ("id", "language", "verdict", "kind", "prompt")


@dataclass(frozen=True)
class Labelled:
    """A response with its right verdict; `response` is None where the generation failed. `kind` says what is hard about it."""

    id: str
    language: str
    verdict: Verdict
    kind: str
    prompt: str
    response: Response | None

    @property
    def part(self) -> Part:
        """The half it belongs to, by hash of the id: markers are tuned on the first and reported on the second."""
        return "held-out" if hashlib.sha256(self.id.encode()).digest()[-1] & 1 else "tuning"


@dataclass(frozen=True)
class Accuracy:
    """Of one verdict: precision and recall with Wilson intervals, None where the judge never says it or no response deserves it."""

    precision: Measurement | None
    recall: Measurement | None

    def to_json(self) -> dict[str, Any]:
        """Return both measurements as JSON, null where there is none."""
        return {k: None if m is None else m.to_json() for k, m in (("precision", self.precision), ("recall", self.recall))}


def read_labelled(path: Path) -> tuple[Labelled, ...]:
    """Return the labelled responses of a JSONL file (format: docs/formats.md).

    Raises: UserError for a missing file, a line that is no JSON object, a missing or wrong field, an unknown verdict, an id used twice.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; give a JSONL file of labelled responses.")
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = tuple(_row(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1) if line.strip())
    ids = [row.id for row in rows]
    if repeated := [i for i in ids if ids.count(i) > 1]:
        raise UserError(f"{path} uses the id {repeated[0]!r} twice; give every labelled response its own.")
    return rows


def accuracy(labelled: Sequence[Verdict], judged: Sequence[Verdict]) -> dict[Verdict, Accuracy]:
    """Return precision and recall of each of the six verdicts.

    Precision = right / judged so, recall = right / labelled so. A response that the judge left unscored counts against recall.

    Raises: UserError when there is not one verdict for each label.
    """
    if len(labelled) != len(judged):
        raise UserError(f"Each label needs a verdict, but got {len(judged)} verdicts for {len(labelled)} labels; judge the same responses.")
    pairs = list(zip(labelled, judged, strict=True))
    said = {v: [right == v for right, got in pairs if got == v] for v in VERDICTS}
    deserved = {v: [got == v for right, got in pairs if right == v] for v in VERDICTS}
    return {v: Accuracy(*(rate(hits) if hits else None for hits in (said[v], deserved[v]))) for v in VERDICTS}


def _row(line: str, where: str) -> Labelled:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}); write one object a line.") from error
    if not isinstance(data, dict):
        raise UserError(f"{where}: a labelled response is a JSON object, got {type(data).__name__}; write one object a line.")
    for name in _TEXTS:
        if not isinstance(data.get(name), str):
            raise UserError(f"{where}: the field {name!r} must be a text, got {data.get(name)!r}; add it.")
    if data["verdict"] not in VERDICTS:
        raise unknown_name(f"verdict in {where}:", data["verdict"], VERDICTS)
    response, verdict = _response(data, where), cast(Verdict, data["verdict"])
    return Labelled(data["id"], data["language"], verdict, data["kind"], data["prompt"], response)


def _response(data: dict[str, Any], where: str) -> Response | None:
    text, finished, template = data.get("response"), data.get("finished"), data.get("template", "")
    if text is None:
        return None
    if not isinstance(text, str) or not isinstance(finished, bool) or not isinstance(template, str):
        raise UserError(f"{where}: needs 'response' as a text or null and 'finished' as true or false; correct the line.")
    return Response((), text, finished, answer_of_text(text, template))
