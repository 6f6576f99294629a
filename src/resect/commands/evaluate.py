"""`resect evaluate MODEL`: a checkpoint scored on a suite, alone, against another, or with a run's edit."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resect import __version__, artifacts
from resect.commands import console, evaluation_table
from resect.commands.edits import from_run
from resect.commands.inputs import open_model, open_organism
from resect.commands.judges import JudgeOptions, Surroundings, make_judges
from resect.commands.study import collect
from resect.config import SRAConfig, make_config
from resect.edit import hooks
from resect.errors import UserError, unknown_name
from resect.evaluation.harness import run_tasks
from resect.models.differences import differences
from resect.models.identity import asked_through
from resect.models.load import ChatModel
from resect.models.writers import find_writers
from resect.organism.shipped import names_organism
from resect.organism.suite import own_suite
from resect.prompts import PromptSet
from resect.prompts.suite import Suite, load_suite
from resect.run import open_folder
from resect.studies import cross_fit
from resect.studies.cross_fit import Learnt
from resect.studies.steps import Steps
from resect.studies.suite import BASE, SETTINGS, Arm, Named, Subject, run
from resect.studies.suite_summary import sample_rows, summary

FORMAT = "resect.evaluation/1"
FILE = "evaluation.toml"
"""Marks a folder of results, as `run.toml` marks a run; it is never taken for one."""
ORGANISM_SETTINGS = {"max_new_tokens": 32, "kl_tokens": 8}


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-evaluation-harness, a folder with task files of one's own, and the most documents a task."""

    names: tuple[str, ...] = ()
    folder: Path | None = None
    limit: int | None = None

    @property
    def key(self) -> str:
        """A short name for files."""
        files = sorted(self.folder.glob("*.y*ml")) if self.folder else []
        told = repr((self.names, self.limit, [p.read_bytes() for p in files]))
        return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Request:
    """What is to be scored, on what, and by whom."""

    model: str
    against: str | None
    edit: Path | None
    suite: Path | None
    judges: JudgeOptions
    judges_named: bool
    tasks: Tasks


def is_run(target: str) -> bool:
    """Return whether the argument names a run folder, which holds `run.toml` and is scored on its own test prompts."""
    return (Path(target) / "run.toml").is_file()


def refuse_run(target: str) -> None:
    """Raise `UserError` where options for models were given with a run folder."""
    raise UserError(
        f"{target} is a run folder, which is scored on its own test prompts and takes no such options; to score a model with its edit on "
        f"a suite: resect evaluate MODEL --edit {target} --suite FILE"
    )


def refuse_no_cache(target: str) -> None:
    """Raise `UserError` where `--no-cache` was given with a model."""
    raise UserError(f"--no-cache goes with a run folder, and nothing is kept of {target} outside --out; leave it out.")


def evaluate(request: Request, settings: Sequence[str], *, out: Path, load: Mapping[str, Any], as_json: bool) -> None:
    """Score the models on the suite and the tasks, write `evaluation.json`, and show it.

    Raises: UserError for anything wrong with what was named, and, after everything else is written, for a named judge that failed.
    """
    config, suite = _settings(request, settings), _suite(request)
    console.quiet_libraries()
    arms: dict[str, Arm] = {}
    steps = Steps(out)

    def learnt() -> tuple[Learnt, Learnt]:
        base = arms[BASE]
        found = steps.json("refusal_tokens", lambda: cross_fit.to_json(cross_fit.learn(base.first_logprobs, base.asked, base.said)))
        return cross_fit.from_json(found)

    around = Surroundings(lambda: arms[BASE], learnt, out / "judgements", str(load["device"]))
    judges = make_judges(request.judges, around)
    with console.progress("evaluation", total=12) as step:
        steps.on_step = step
        step("loading")
        subjects, about = _subjects(request, load)
        open_folder(out, _identity(about, suite, config), file=FILE)
        arms |= {name: Arm(subject, suite, config) for name, subject in subjects.items()}
        apart = {name: _apart(arms[BASE], arm) for name, arm in arms.items()}
        results = run(arms, judges, steps, refusal_tokens=lambda: _tokens(learnt))
        for name, subject in subjects.items():
            results[name]["tasks"] = _run_tasks(name, subject, request.tasks, steps)
    evaluation = _document(about, suite, config, judges, results)
    for name, found in apart.items():
        evaluation["arms"][name]["differences"] = found
    artifacts.write_json(out / "evaluation.json", evaluation)
    artifacts.write_text(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in sample_rows(results, suite)))
    if as_json:
        console.show_json(evaluation)
    else:
        evaluation_table.show(evaluation)
        console.say(f"Evaluation: {out / 'evaluation.json'}")
    _refuse_dead_judges(request, evaluation, out)


def _settings(request: Request, settings: Sequence[str]) -> SRAConfig:
    given = collect(None, settings, {})
    for name in given:
        if name not in SETTINGS:
            raise unknown_name("setting of an evaluation", name, SETTINGS)
    return make_config((ORGANISM_SETTINGS if names_organism(request.model) else {}) | given)


def _suite(request: Request) -> Suite:
    """Return the suite: a file's, an organism's own, or an empty one where there are only tasks."""
    if request.suite is not None:
        return load_suite(request.suite)
    if names_organism(request.model) and not request.tasks.names:
        return own_suite(open_organism(request.model).language)
    if request.tasks.names:
        return Suite(*(PromptSet(kind, ()) for kind in ("harmful", "harmless", "question")), grades=(), texts=())
    raise UserError(
        f"{request.model} is no run folder (it has no run.toml), so it is taken for a model, and there is nothing to score it on; give "
        "--suite FILE or --tasks NAMES."
    )


def _subjects(request: Request, load: Mapping[str, Any]) -> tuple[dict[str, Subject], dict[str, dict[str, Any]]]:
    """Return the models to score and, for each, what it is."""
    model = open_model(request.model, **load)
    subjects, about = {BASE: Subject(model)}, {BASE: _about(model)}
    if request.edit is not None:
        edit = from_run(request.edit, model)
        # An edit is put on by hooks, which need the writers; models that are only read need not have them found.
        subjects["edited"] = Subject(model, partial(hooks.applied, model, find_writers(model), edit.plan))
        about["edited"] = _about(model) | {"edit": edit.sentence, "edit_sha256": _digest(request.edit)}
    if request.against is not None:
        other = open_model(request.against, **load)
        subjects["against"], about["against"] = Subject(other), _about(other)
    return subjects, about


def _about(model: ChatModel) -> dict[str, Any]:
    dtype = str(model.network.dtype).removeprefix("torch.")
    return {"model": model.name, "dtype": dtype, "fingerprint": model.fingerprint, "tokenizer": asked_through(model)}


def _apart(base: Arm, arm: Arm) -> dict[str, str]:
    """Return what an arm's model differs in from the base besides its weights; raises `UserError` if it cannot be asked the suite."""
    asked = [*arm.asked, *arm.suite.questions]
    return differences(base.model, arm.model, asked, system=arm.config.system, thinking=arm.config.thinking)


def _digest(run: Path) -> str:
    return hashlib.sha256(b"".join((run / name).read_bytes() for name in ("edit.json", "edit.safetensors"))).hexdigest()


def _identity(about: Mapping[str, Mapping[str, Any]], suite: Suite, config: SRAConfig) -> dict[str, Any]:
    """Return what makes two evaluations the same one, so that finished parts may be read back. Judges and tasks may be added."""
    told = {f"{name}_{key}": value for name, entry in about.items() for key, value in entry.items() if key != "edit"}
    settings = {name: getattr(config, name) for name in SETTINGS}
    return {"format": FORMAT, "resect": __version__, **told, "suite": suite.fingerprint, **settings}


def _tokens(learnt: Callable[[], tuple[Learnt, Learnt]]) -> tuple[int, ...]:
    """Return the refusal tokens of the base for the split of its drift, none where they cannot be learnt: the log-odds judge says why."""
    try:
        return tuple(sorted({i for half in learnt() for i in half.tokens.ids}))
    except UserError:
        return ()


def _run_tasks(name: str, subject: Subject, tasks: Tasks, steps: Steps) -> dict[str, Any]:
    if not tasks.names:
        return {}

    def compute() -> dict[str, Any]:
        with subject.put_on():
            found = run_tasks(subject.model, tasks.names, folder=tasks.folder, limit=tasks.limit)
        return {task: scores.to_json() for task, scores in found.items()}

    return steps.json(f"{name}_tasks_{tasks.key}", compute)


def _document(
    about: Mapping[str, Any], suite: Suite, config: SRAConfig, judges: Sequence[Named], results: Mapping[str, Any]
) -> dict[str, Any]:
    arms, comparisons = summary(results, suite, seed=config.seed)
    return {
        "format": FORMAT,
        "model": about[BASE]["model"],
        "subjects": about,
        "suite": {"fingerprint": suite.fingerprint, "counts": suite.counts, "dropped": suite.dropped},
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "judges": [judge.name for judge in judges],
        "arms": arms,
        "comparisons": comparisons,
    }


def _refuse_dead_judges(request: Request, evaluation: Mapping[str, Any], out: Path) -> None:
    """Raise `UserError` if a judge that the user named failed: all else has been written and shown, but it is not what was asked for."""
    if not request.judges_named:
        return
    for arm, entry in evaluation["arms"].items():
        for name, found in entry.get("judges", {}).items():
            if "error" in found:
                raise UserError(
                    f"Judge {name} could not score {arm}: {found['error']} Everything else is in {out}; run the same again to add it."
                )
