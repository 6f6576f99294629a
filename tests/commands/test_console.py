"""What the terminal shows when it is no terminal."""

import json
import os
import subprocess
import sys

from rich.text import Text

from resect.commands import console


def test_json_is_all_there_is_on_standard_output(capsys):
    console.show_json({"b": [1], "a": "[bold]:smile: é"})
    console.warn("told apart")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"b": [1], "a": "[bold]:smile: é"}
    assert said.err == "Note: told apart\n"
    console.show_json({"a": "x" * 500}, lines=True)
    assert capsys.readouterr().out.count("\n") == 1


def test_text_is_never_taken_for_markup(capsys):
    console.say("[red]owner/name:test:column[/red] :smile:")
    assert capsys.readouterr().out == "[red]owner/name:test:column[/red] :smile:\n"


def test_progress_is_plain_lines_each_once(capsys):
    with console.progress("study", total=3) as step:
        for name in ("one", "one", "two"):
            step(name)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "study: one\nstudy: two\n")


def test_long_names_in_tables_are_whole(capsys):
    table = console.table("writer", "n")
    name = "model.language_model.layers.10.mlp.experts.down_proj"
    table.add_row(Text(name), "1")
    console.show(table)
    assert name in capsys.readouterr().out


def bars(prepare):
    """Return what a fresh process says of the progress bars of datasets."""
    told = "print('datasets' in sys.modules); import datasets; print(datasets.is_progress_bar_enabled())"
    code = "\n".join(("import sys; from resect.commands import console", prepare, told))
    environment = {name: value for name, value in os.environ.items() if name != "HF_DATASETS_DISABLE_PROGRESS_BARS"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_data_sets_have_no_bars_whether_they_are_imported_before_or_after():
    assert bars("") == ["False", "True"]
    assert bars("console.quiet_libraries()") == ["False", "False"]
    assert bars("import datasets; console.quiet_libraries()") == ["True", "False"]
