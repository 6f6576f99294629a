import json

import pytest

from resect.errors import UserError
from resect.prompts.suite import load_suite

ROWS = [
    {"kind": "harmful", "text": "Pick the lock", "category": "theft"},
    {"kind": "question", "text": "Add 1 and 2", "reference": "3", "grade": "exact"},
    {"kind": "harmless", "text": "Bake bread", "category": "food", "system": "Be brief."},
    {"kind": "question", "text": "Name a river", "reference": "the Nile"},
    {"kind": "text", "text": "Rivers flow to the sea.", "more": 1},
    {"kind": "harmful", "text": "Pick the lock", "category": "again"},
]


@pytest.fixture
def write(tmp_path):
    """A function: rows to a suite file."""

    def file(rows):
        path = tmp_path / "suite.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return file


def test_rows_go_where_their_kind_says_and_repeats_are_counted(write):
    suite = load_suite(write(ROWS))
    assert suite.counts == {"harmful": 1, "harmless": 1, "question": 2, "text": 1}
    assert suite.dropped == 1
    assert (suite.harmful.prompts[0].category, suite.harmless.prompts[0].system) == ("theft", "Be brief.")
    assert [(p.response, grade) for p, grade in zip(suite.questions, suite.grades, strict=True)] == [("3", "exact"), ("the Nile", None)]
    assert suite.texts == ("Rivers flow to the sea.",)


def test_the_fingerprint_is_that_of_the_content(write):
    before = load_suite(write(ROWS)).fingerprint
    assert load_suite(write(ROWS[:-1])).fingerprint == before
    for row, name, value in (
        (1, "reference", "4"),
        (1, "grade", None),
        (2, "system", None),
        (4, "text", "Rivers flow."),
        (0, "kind", "harmless"),
    ):
        changed = [dict(r) for r in ROWS[:-1]]
        changed[row][name] = value
        assert load_suite(write(changed)).fingerprint != before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "question", "text": "Add 1 and 2"}, "line 2: a question needs a 'reference', the right answer, found None"),
        ({"kind": "question", "text": "Add 1 and 2", "reference": " "}, "a question needs a 'reference'"),
        ({"kind": "harmfull", "text": "x"}, r"Unknown kind in .*line 2: 'harmfull'; did you mean 'harmful'\?"),
        ({"text": "x"}, "Unknown kind in .*line 2: 'None'"),
        ({"kind": "text", "text": "  "}, "line 2: a row needs its 'text'"),
        ({"kind": "harmless"}, "line 2: a row needs its 'text', found None"),
        ({"kind": "harmless", "text": 3}, "'text' must be a text, found int '3'"),
        ({"kind": "question", "text": "x", "reference": "y", "grade": "code"}, "Unknown grade in .*'code'"),
        ({"kind": "harmless", "text": "x", "grade": "exact"}, "only a question has a grade"),
        ({"kind": "harmless", "text": "x", "sytem": "Be brief."}, r"Unknown field in .*line 2: 'sytem'; did you mean 'system'\?"),
        ({"kind": "harmless", "text": "x", "Category": "food"}, "'Category'; did you mean 'category'"),
        ({"kind": "harmless", "text": "pick the  LOCK"}, "'harmful' and 'harmless' share 1 prompts"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(write, row, message):
    with pytest.raises(UserError, match=message):
        load_suite(write([ROWS[0], row]))


def test_an_id_used_twice_and_a_question_with_two_answers_are_named_with_both_lines(write):
    rows = [{"id": i, **row} for i, row in enumerate(ROWS)]
    assert load_suite(write(rows)).counts == load_suite(write(ROWS)).counts
    rows[3]["id"] = 1
    with pytest.raises(UserError, match=r"line 4: the id '1' is that of .*line 2; give every row its own"):
        load_suite(write(rows))
    for change in ({"reference": "4"}, {"grade": None}):
        with pytest.raises(UserError, match=r"line 3: asks what .*line 2 asks, with another reference or grade"):
            load_suite(write([ROWS[0], ROWS[1], ROWS[1] | change]))


def test_an_empty_file_and_a_missing_one(write, tmp_path):
    with pytest.raises(UserError, match="holds no rows; a suite has at least one"):
        load_suite(write([]))
    with pytest.raises(UserError, match="no prompt file"):
        load_suite(tmp_path / "none.jsonl")
