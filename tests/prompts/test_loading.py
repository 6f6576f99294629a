import json
import logging
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError
from pyarrow import Table, parquet

from resect.errors import UserError
from resect.prompts import TEXT_COLUMNS, Prompt, load_prompts

ROWS = [
    {"text": "How do I cook rice?", "category": "food", "pair_id": 0, "system": "Be brief.", "response": "Boil it."},
    {"text": 'Quotes ", commas, and\nlines', "category": "odd", "pair_id": 1, "system": None, "response": None},
    {"text": "naïve café 🍚", "category": None, "pair_id": None, "system": None, "response": "été"},
]
EXPECTED = (
    Prompt("How do I cook rice?", "food", "0", "Be brief.", "Boil it."),
    Prompt('Quotes ", commas, and\nlines', "odd", "1"),
    Prompt("naïve café 🍚", response="été"),
)
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write(path, rows):
    """Write the rows in the format of the path's extension."""
    if path.suffix == ".jsonl":
        return jsonl(path, rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_prompts(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", ROWS)
    loaded = load_prompts(path)
    assert loaded.prompts == EXPECTED
    assert (loaded.name, loaded.source, loaded.dropped) == ("rows", str(path), 0)
    assert load_prompts(str(path), name="mine", limit=2).texts == tuple(p.text for p in EXPECTED[:2])


def test_text_files_hold_one_prompt_a_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("first, line\r\n\r\nsecond\u2028still second\nlast".encode())
    assert load_prompts(path).texts == ("first, line", "second\u2028still second", "last")


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_text_column_is_found_in_any_case(tmp_path, column):
    path = write(tmp_path / "rows.csv", [{"other": "no", column.title(): "yes"}])
    assert load_prompts(path).texts == ("yes",)


def test_text_column_order_and_a_named_column(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"behavior": "Defamation", "goal": "a goal", "text": "a text", "free": "other"}])
    assert load_prompts(path).texts == ("a text",)
    assert load_prompts(path, column="behavior").texts == ("Defamation",)
    assert load_prompts(path, column="free").texts == ("other",)


@pytest.mark.parametrize("column", ["response", "output", "answer", "completion"])
def test_response_columns(tmp_path, column):
    assert load_prompts(jsonl(tmp_path / "rows.jsonl", [{"question": "2+2?", column: 4}])).prompts[0] == Prompt("2+2?", response="4")


def test_alpaca_input_is_appended_to_an_instruction_only(tmp_path):
    rows = [{"instruction": "Sum up.", "input": "A tale.", "output": "T."}, {"instruction": "Sing.", "input": ""}]
    assert load_prompts(jsonl(tmp_path / "rows.jsonl", rows)).texts == ("Sum up.\n\nA tale.", "Sing.")
    assert load_prompts(jsonl(tmp_path / "rows.jsonl", [{"prompt": "Go.", "input": "x"}])).texts == ("Go.",)


def test_duplicates_and_blanks_are_counted_and_logged(tmp_path, caplog):
    rows = [{"text": "a"}, {"text": "a", "category": "c"}, {"text": "a", "system": "s"}, {"text": " "}, {"text": "b"}]
    with caplog.at_level(logging.INFO):
        loaded = load_prompts(jsonl(tmp_path / "rows.jsonl", rows))
    assert [(p.text, p.system) for p in loaded] == [("a", None), ("a", "s"), ("b", None)]
    assert loaded.dropped == 2
    assert "1 exact duplicates and 1 blank rows" in caplog.text


def test_whole_pair_numbers_are_one_name_in_every_format(tmp_path):
    rows = [{"text": "a", "pair_id": 3}, {"text": "b", "pair_id": None}]
    assert [load_prompts(write(tmp_path / f"r{s}", rows)).prompts[0].pair_id for s in (".jsonl", ".csv", ".parquet")] == ["3"] * 3
    assert load_prompts(jsonl(tmp_path / "r.jsonl", [{"text": "a", "pair_id": 3.0}])).prompts[0].pair_id == "3"


BAD = {
    "empty.jsonl": ("", r"empty.jsonl holds no prompts"),
    "empty.txt": ("\n\n", r"empty.txt holds no prompts"),
    "empty.json": ("", r"empty.json holds no prompts"),
    "header.csv": ("text,category\n", r"header.csv holds no prompts"),
    "broken.jsonl": ('{"text": "a"}\n\n{"text": "b"\n', r"broken.jsonl, line 3: not valid JSON \(.* at column \d+\)"),
    "number.jsonl": ("3\n", r"number.jsonl, line 1: expected a JSON object, found int"),
    "broken.json": ('[{"text": "a"},\n oops]', r"broken.json, line 2: not valid JSON"),
    "object.json": ('{"text": "a"}', r"must hold a JSON list of objects or texts, found dict"),
    "wide.csv": ("text,category\na,b\nc,d,e\n", r"wide.csv, line 3: more cells than the header has columns"),
    "quote.csv": ('text\n"a"b\n', r"quote.csv, after line 1: not a valid table"),
    "columns.csv": ("id,body\n1,a\n", r"columns.csv, line 2: no column for the text was found among id, body"),
    "cell.jsonl": ('{"text": "a"}\n{"text": ["b"]}\n', r"cell.jsonl, line 2: column 'text' holds list .* where text is needed"),
    "none.jsonl": ('{"text": null}\n', r"none.jsonl, line 1: column 'text' holds nothing where text is needed"),
    "answer.jsonl": ('{"text": "a", "response": {"b": 1}}\n', r"answer.jsonl, line 1: column 'response' holds dict"),
    "late.jsonl": ('{"text": "a"}\n{"body": "b"}\n', r"late.jsonl, line 2: no column for the text was found among body"),
    "prompts.xlsx": ("", r"unknown extension '.xlsx'; allowed are .csv, .json, .jsonl"),
    "prompts": ("a", r"unknown extension '\(none\)'"),
    "bad.parquet": ("PAR1 no", r"bad.parquet cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_other_bad_input(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"line 1: there is no column 'body'; the columns are text, category, pair_id"):
        load_prompts(path, column="body")
    table = write(tmp_path / "rows.parquet", [{"id": 1, "note": "a"}])
    with pytest.raises(UserError, match=r"no column for the text was found among id, note"):
        load_prompts(table)
    for missing in (tmp_path / "no.jsonl", "no/where.jsonl", "./no/where", "nowhere"):
        with pytest.raises(UserError, match=r"There is no prompt file"):
            load_prompts(missing)
    with pytest.raises(UserError, match=r"limit on prompts must be at least 1, got 0"):
        load_prompts(path, limit=0)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"latin.txt is not UTF-8 text \(byte 3\)"):
        load_prompts(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", ("owner/name", None, "train", None)),
        ("owner/name:test", ("owner/name", None, "test", None)),
        ("owner/name:test:free", ("owner/name", None, "test", None)),
        ("owner/name:test:free@v1.0", ("owner/name", None, "test", "v1.0")),
        ("owner/name@abc", ("owner/name", None, "train", "abc")),
        ("owner/name:main/test[:10]:free", ("owner/name", "main", "test[:10]", None)),
        ("owner/na.me-1_2:main/test", ("owner/na.me-1_2", "main", "test", None)),
    ],
)
def test_hub_ids(monkeypatch, source, expected):
    calls = []

    def load(path, name, *, split, revision):
        calls.append((path, name, split, revision))
        return datasets.Dataset.from_list([{"text": "a", "free": "b", "image": [1]}, {"text": "c", "free": "d", "image": [2]}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = load_prompts(source)
    assert calls == [expected]
    assert loaded.texts == (("b", "d") if "free" in source else ("a", "c"))
    assert loaded.source == source
    assert load_prompts(source, limit=1).texts == loaded.texts[:1]


def test_hub_failures_are_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"owner/name \(split 'train'\) cannot be loaded: Dataset 'owner/name' doesn't exist on the Hub; write"
    ):
        load_prompts("owner/name")


def test_a_local_data_set_folder_goes_through_the_same_loader(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", ROWS)
    jsonl(folder / "test.jsonl", [ROWS[2] | {"text": "only"}])
    assert load_prompts(folder).prompts == EXPECTED
    assert load_prompts(f"{folder}:test:response").texts == ("été",)
    with pytest.raises(UserError, match=r"split 'nosuch'\) cannot be loaded"):
        load_prompts(f"{folder}:nosuch")
    with pytest.raises(UserError, match=r"row 1: there is no column 'body'; the columns are text, category"):
        load_prompts(f"{folder}:test:body")
    (folder / "test.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match=r"split 'test'\) cannot be loaded: .*JSON"):
        load_prompts(f"{folder}:test")


if SHARED.is_dir():

    @pytest.mark.parametrize("path", sorted(SHARED.rglob("*.jsonl")), ids=lambda p: p.name)
    def test_public_files_load_as_they_are(path):
        rows = [json.loads(line) for line in path.read_text().splitlines() if line]
        loaded = load_prompts(path)
        assert len(loaded) + loaded.dropped == len(rows)
        assert set(loaded.texts) == {row["text"] for row in rows}
        assert all((p.pair_id is not None) == ("pair_id" in rows[0]) for p in loaded)
        first = loaded.prompts[0]
        assert (first.category, first.response) == (rows[0].get("category"), rows[0].get("response"))
