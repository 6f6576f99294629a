"""`resect chat`: base and edited answers side by side, one prompt a line."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from resect.commands import console
from resect.commands.edits import from_run
from resect.commands.inputs import open_model
from resect.prompts import Prompt
from resect.run import read_edit, read_settings
from resect.studies.lab import Lab

QUIT = "/quit"


def chat(model: str, run: Path, *, max_new_tokens: int, load: dict[str, Any], as_json: bool) -> None:
    """Answer every line of standard input with the base and with the edited model, under the run's system prompt, until /quit."""
    config = read_settings(run)
    read_edit(run)
    console.quiet_libraries()
    with console.progress("chat", total=2) as step:
        step("loading")
        lab = Lab(open_model(model, **load), config)
        edit = from_run(run, lab.model)
    if console.err.is_terminal and not as_json:
        console.say(f"Edit: {edit.sentence}. One prompt a line; {QUIT} ends.")
    for text in _lines(sys.stdin):
        prompt = [Prompt(text)]
        base = lab.respond(prompt, max_new_tokens=max_new_tokens)[0].text
        with lab.edited(edit.plan):
            edited = lab.respond(prompt, max_new_tokens=max_new_tokens)[0].text
        if as_json:
            console.show_json({"prompt": text, "base": base, "edited": edited}, lines=True)
        else:
            console.show(_beside(base, edited))


def _lines(stream: Iterable[str]) -> Iterator[str]:
    for line in stream:
        text = line.strip()
        if text == QUIT:
            return
        if text:
            yield text


def _beside(base: str, edited: str) -> Table:
    # `Text`, since a response may hold what rich would take for markup.
    table = Table("base", "edited", expand=True)
    table.add_row(Text(base), Text(edited))
    return table
