"""The frame of the command line: fast help, exit codes, one line for a mistake, a traceback for a bug."""

import gc
import os
import resource
import subprocess
import sys

import pytest
import typer

from resect import cli
from resect.cli.application import importing
from resect.errors import UserError

RUN = "import sys; from resect.cli import main; main()"
COMMANDS = [
    "demo",
    "sra",
    "contrast",
    "recipe",
    "activations",
    "directions",
    "cleaning",
    "edit",
    "evaluate",
    "report",
    "apply",
    "convert",
    "chat",
    "inspect",
    "organism",
    "cache",
]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["resect", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_names_every_command_and_costs_less_than_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(RUN, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.split("Commands:\n")[1].splitlines()] == COMMANDS
    # Processor time: the clock also shows what other processes do.
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.5


@pytest.mark.parametrize("module", ["resect", "resect.cli"])
def test_importing_loads_nothing_heavy(module):
    heavy = ["torch", "transformers", "numpy", "datasets", "pydantic", "altair"]
    assert python(f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])").stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "Usage:" in out


def test_no_arguments_print_the_help(monkeypatch, capsys):
    assert run(monkeypatch, capsys)[:2] == run(monkeypatch, capsys, "--help")[:2]
    assert run(monkeypatch, capsys, "organism")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sre"], "No such command 'sre'. Did you mean 'sra'?"),
        (["organism", "trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["sra", "x", "--harmfull", "y"], "No such option: --harmfull"),
        (["demo", "--sett", "seed=1"], "No such option: --sett"),
        (["cleaning", "x", "--lam", "much"], "Invalid value for '--lam'"),
        (["demo", "--set", "sed=3"], "Unknown setting 'sed'; did you mean 'seed'? Allowed: arms, atom_scaling,"),
        (["demo", "--set", "seed"], "--set takes NAME=VALUE, got 'seed'; for example --set passes=2."),
        (["demo", "--set", "seed=[1"], "--set seed=[1 is not a TOML value; quote texts, and write lists as [1, 2]."),
        (["demo", "--set", "seed=many"], "Setting 'seed' is wrong:"),
        (["demo", "--set", "arms=['sro']"], "Unknown arm 'sro'; did you mean 'sra'? Allowed:"),
        (["sra", "default", "--position", "lasst"], "Unknown position 'lasst'; did you mean 'last'? Allowed: -1, last, last_user, mean."),
        (["demo", "--config", "/none.toml"], "Cannot read settings file /none.toml: No such file or directory."),
        (["organism", "train", "--out", "/tmp/x", "--architecture", "qwen"], "Unknown architecture 'qwen'; did you mean 'qwen3'?"),
        (["organism", "train", "--out", "/tmp/x", "--topic", "2"], "Topic strength is 2.0; it is a number from 0"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {message}")
    assert err.count("\n") == 1


def test_a_misspelt_option_names_the_nearest(monkeypatch, capsys):
    assert "--harmful" in run(monkeypatch, capsys, "sra", "x", "--harmfull", "y")[2]


def test_a_message_of_several_lines_is_told_in_one(monkeypatch, capsys):
    def fail(**_):
        raise UserError("first\nsecond")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch, capsys) == (2, "", "Error: first second\n")


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def stop(**_):
        raise typer.Abort

    monkeypatch.setattr(cli, "app", stop)
    assert run(monkeypatch, capsys) == (130, "", "Stopped; run the same command again to go on.\n")


def test_a_bug_keeps_its_traceback_and_ends_with_1():
    code = "import resect.cli as c\ndef f(**_): raise RuntimeError('a bug')\nc.app = f\nc.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: a bug\n")


def test_garbage_waits_while_a_command_imports_and_no_longer():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        import nothing_of_this_name  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()  # somebody else's switch stays where it was
    finally:
        gc.enable()
