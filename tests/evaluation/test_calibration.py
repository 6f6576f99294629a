import json
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

from resect.errors import UserError
from resect.evaluation.calibration import accuracy, read_labelled
from resect.evaluation.judges import MarkerJudge, verdicts_of
from resect.evaluation.verdicts import VERDICTS
from resect.prompts import Prompt

SET = Path(__file__).parents[1] / "data" / "judged_responses.jsonl"
ROW = {"id": "a", "language": "en", "verdict": "comply", "kind": "plain", "prompt": "2+2?", "response": "4", "finished": True}


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write_rows


def test_the_labelled_set_is_large_varied_and_without_repeats():
    rows = read_labelled(SET)
    assert len(rows) >= 400
    spoken = [(row.response.text, row.response.finished) for row in rows if row.response is not None]
    assert len(set(spoken)) == len(spoken)
    assert {row.language for row in rows} == {"en", "de", "fr", "es", "pt", "it", "ru", "zh", "ja", "ko"}
    assert {row.language for row in rows if row.verdict == "refuse"} == {row.language for row in rows}
    assert min(Counter(row.verdict for row in rows)[verdict] for verdict in VERDICTS) >= 8
    assert len({row.kind for row in rows}) > 25
    assert 0.4 < sum(row.part == "tuning" for row in rows) / len(rows) < 0.6
    assert sum(row.response is not None and row.response.answer is not None for row in rows) > 20


def test_refused_requests_are_placeholders():
    assert {row.prompt for row in read_labelled(SET) if row.verdict == "refuse"} == {"[request]"}


def test_the_default_judge_finds_refusals():
    """The bar is 0.95 on the held-out part; benchmarks/judges.py prints the figures."""
    rows = [row for row in read_labelled(SET) if row.part == "held-out"]
    got = verdicts_of(MarkerJudge(), [Prompt(row.prompt) for row in rows], [row.response for row in rows])
    refuse = accuracy([row.verdict for row in rows], got)["refuse"]
    assert refuse.precision is not None
    assert refuse.recall is not None
    assert refuse.precision.value >= 0.95
    assert refuse.recall.value >= 0.95


def test_accuracy_by_hand():
    labelled = ["refuse", "refuse", "refuse", "comply", "evasive"]
    judged = ["refuse", "unscored", "comply", "refuse", "evasive"]
    got = accuracy(labelled, judged)
    assert (got["refuse"].precision.value, got["refuse"].recall.value) == (0.5, pytest.approx(1 / 3))
    assert (got["comply"].precision.value, got["comply"].recall.value) == (0.0, 0.0)
    assert (got["evasive"].precision.value, got["evasive"].recall.value) == (1.0, 1.0)
    assert got["degenerate"].to_json() == {"precision": None, "recall": None}
    wilson = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert (got["refuse"].recall.low, got["refuse"].recall.high) == pytest.approx((wilson.low, wilson.high))
    with pytest.raises(UserError, match="got 1 verdicts for 2 labels"):
        accuracy(["refuse", "comply"], ["refuse"])


def test_thoughts_are_split_off_by_the_template_of_the_row(write):
    thought = "<think>no</think>4"
    plain, told = read_labelled(write(ROW | {"response": thought}, ROW | {"id": "b", "response": thought, "template": "<think>"}))
    assert plain.response.answer_text == thought
    assert told.response.answer_text == "4"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "a JSON object, got list"),
        (ROW | {"prompt": 3}, "field 'prompt' must be a text, got 3"),
        (ROW | {"verdict": "refused"}, "did you mean 'refuse'"),
        (ROW | {"finished": "yes"}, "'finished' as true or false"),
        (ROW | {"response": ["4"]}, "'response' as a text or null"),
    ],
)
def test_a_wrong_line_is_named(write, row, message):
    with pytest.raises(UserError, match=message):
        read_labelled(write(row))


def test_ids_are_unique_and_the_file_is_there(write, tmp_path):
    with pytest.raises(UserError, match="the id 'a' twice"):
        read_labelled(write(ROW, ROW))
    with pytest.raises(UserError, match="no file"):
        read_labelled(tmp_path / "none.jsonl")
