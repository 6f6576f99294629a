"""evaluate: a run folder on its own test prompts, or any checkpoint on a suite."""

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.application import app, importing
from resect.commands import options as o


@app.command()
def evaluate(  # noqa: PLR0913
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run folder, or model: local folder, Hub id, organism, default.")],
    suite: Annotated[Path | None, typer.Option(help="Suite file (see docs/formats.md); an organism brings its own.")] = None,
    against: Annotated[str | None, typer.Option(help="A second model, scored beside the first and tested against it.")] = None,
    run: Annotated[Path | None, typer.Option("--edit", help="Run folder whose edit is put on the model, scored beside it.")] = None,
    judge: Annotated[list[str], typer.Option(help="markers, log_odds, classifier:MODEL, endpoint:URL; repeat.")] = [],  # noqa: B006
    judge_label: Annotated[list[str], typer.Option(help="What a classifier's label means, LABEL=VERDICT; repeat.")] = [],  # noqa: B006
    judge_model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")] = None,
    judge_key: Annotated[str | None, typer.Option(help="Environment variable that holds the endpoint's key.")] = None,
    judge_timeout: Annotated[float, typer.Option(help="Seconds to wait for one reply of the endpoint.")] = 60.0,
    judge_retries: Annotated[int, typer.Option(help="How often a failed request is repeated.")] = 4,
    judge_requests: Annotated[int | None, typer.Option(help="Most requests to the endpoint.")] = None,
    judge_tokens: Annotated[int | None, typer.Option(help="Most tokens spent at the endpoint.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness, separated by commas.")] = "",
    task_folder: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most documents of each task.", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results of a model; an unfinished one is continued.")] = None,
    settings: o.Set = [],  # noqa: B006
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    trust: o.Trust = False,  # noqa: FBT002
    no_cache: o.NoCache = False,  # noqa: FBT002
    as_json: o.Json = False,  # noqa: FBT002
) -> None:
    """Score a run's edit on its test prompts (stage 5), or a model on a suite: alone, against another, or with a run's edit."""
    with importing():
        from resect.commands import evaluate, stages
        from resect.commands.judges import DEFAULT, JudgeOptions

    if evaluate.is_run(target):
        if suite or against or run or judge or tasks or out or settings:
            evaluate.refuse_run(target)
        stages.evaluate(Path(target), device=device, trust_remote_code=trust, no_cache=no_cache, as_json=as_json)
        return
    if no_cache:
        evaluate.refuse_no_cache(target)
    options = JudgeOptions(
        names=tuple(judge) or DEFAULT,
        labels=tuple(judge_label),
        model=judge_model,
        key=judge_key,
        timeout=judge_timeout,
        retries=judge_retries,
        max_requests=judge_requests,
        max_tokens=judge_tokens,
    )
    chosen = evaluate.Tasks(tuple(t.strip() for t in tasks.split(",") if t.strip()), task_folder, limit)
    request = evaluate.Request(target, against, run, suite, options, bool(judge), chosen)
    load = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust}
    evaluate.evaluate(request, settings, out=out or Path("runs/evaluation"), load=load, as_json=as_json)
