"""Judges as the user names them: markers, log_odds, classifier:MODEL, endpoint:URL."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resect.errors import UserError, unknown_name
from resect.evaluation.judges import Endpoint, EndpointJudge, Judge, MarkerJudge, load_classifier
from resect.evaluation.judges.transport import open_client
from resect.studies.cross_fit import CrossFitJudge, Learnt
from resect.studies.suite import Arm, Named, no_drift

DEFAULT = ("markers", "log_odds")
NAMES = (*DEFAULT, "classifier:MODEL", "endpoint:URL")


@dataclass(frozen=True)
class JudgeOptions:
    """What was said of judges: their names, the labels of a classifier as LABEL=VERDICT, and model, key and budget of an endpoint."""

    names: tuple[str, ...] = DEFAULT
    labels: tuple[str, ...] = ()
    model: str | None = None
    key: str | None = None
    timeout: float = 60.0
    retries: int = 4
    max_requests: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Surroundings:
    """What judges need besides their options: the base once it is loaded, what its refusals taught, a folder, a device."""

    base: Callable[[], Arm]
    learnt: Callable[[], tuple[Learnt, Learnt]]
    kept: Path
    device: str


def make_judges(options: JudgeOptions, around: Surroundings) -> tuple[Named, ...]:
    """Return the judges, everything about them checked that can be checked before any model is read.

    Raises: UserError for fewer than two, an unknown name, a classifier that cannot be read or whose labels are unknown, an endpoint without
        its model, its key or its package, and options that no judge takes.
    """
    names = tuple(dict.fromkeys(options.names))
    if len(names) < 2:
        raise UserError(f"One judge is never shown alone, and only {', '.join(names)} is named; add another --judge of {', '.join(NAMES)}.")
    _check_used(options, names)
    return tuple(_named(name, options, around) for name in names)


def _check_used(options: JudgeOptions, names: tuple[str, ...]) -> None:
    kinds = {name.partition(":")[0] for name in names}
    given = {"--judge-label": ("classifier", options.labels), "--judge-model": ("endpoint", options.model)}
    given |= {"--judge-key": ("endpoint", options.key), "--judge-requests": ("endpoint", options.max_requests)}
    given |= {"--judge-tokens": ("endpoint", options.max_tokens)}
    for option, (kind, value) in given.items():
        if value and kind not in kinds:
            raise UserError(f"{option} is about a judge {kind}:…, and there is none among {', '.join(names)}; name it with --judge.")


def _named(name: str, options: JudgeOptions, around: Surroundings) -> Named:
    kind, _, rest = name.partition(":")
    if kind == "classifier" and rest:
        classifier = load_classifier(rest, labels=_labels(options.labels), device=around.device)
        return Named(name, lambda _: classifier, repr((classifier.network.name_or_path, classifier.verdicts)))
    if kind == "endpoint" and rest:
        return _endpoint(rest, options, around.kept)
    fixed: dict[str, Callable[[Arm], Judge]] = {
        "markers": lambda _: MarkerJudge(),
        "log_odds": lambda arm: _log_odds(arm, around),
    }
    if name not in fixed:
        raise unknown_name("judge", name, NAMES)
    return Named(name, fixed[name], "shipped")


def _log_odds(arm: Arm, around: Surroundings) -> Judge:
    base = around.base()
    if no_drift(base, arm):
        raise UserError(f"The refusal tokens of {base.model.name} mean nothing in the vocabulary of {arm.model.name}; name another judge.")
    return CrossFitJudge(arm.first_logprobs, around.learnt())


def _endpoint(url: str, options: JudgeOptions, kept: Path) -> Named:
    if options.model is None:
        raise UserError(f"The judge at {url} needs the name of its model; give it with --judge-model NAME.")
    endpoint = Endpoint(url, options.model, key_variable=options.key, timeout=options.timeout, retries=options.retries)
    open_client(endpoint, connections=1).close()  # a missing package or key is said now, not after hours
    judge = EndpointJudge(endpoint, cache=kept, max_requests=options.max_requests, max_tokens=options.max_tokens)
    return Named(f"endpoint:{options.model}", lambda _: judge, url, ask_again=True)


def _labels(pairs: tuple[str, ...]) -> dict[str, str] | None:
    split = [pair.partition("=") for pair in pairs]
    if wrong := [pair for pair, (label, _, verdict) in zip(pairs, split, strict=True) if not label or not verdict]:
        raise UserError(f"--judge-label takes LABEL=VERDICT, got {wrong[0]!r}; for example --judge-label REJECTION=refuse.")
    return {label: verdict for label, _, verdict in split} or None
