"""One edit of the contrast study on the test prompts: per-prompt results first (stored), rates, means and tests from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resect.config import ContrastConfig
from resect.edit.plan import EditPlan
from resect.evaluation import drift, recovery
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.statistics import Difference, holm, mcnemar, mean_of, paired_bootstrap, rate
from resect.evaluation.verdicts import count_verdicts, judge_markers
from resect.generation import Response
from resect.studies.behaviour import Behaviour
from resect.studies.contrast_grid import first_rows, forced
from resect.studies.lab import Lab

TOP = 100
"""The second paper's KL sees the base model's 100 likeliest tokens only."""


@dataclass(frozen=True, eq=False)
class Examiner:
    """What edits are scored on: the test prompts of both sides, the base's distributions, and the twin's answers if there is one."""

    lab: Lab[ContrastConfig]
    behaviour: Behaviour
    base: TokenLogprobs
    twin: tuple[Response, ...] | None


def examine(examiner: Examiner, plan: EditPlan) -> dict[str, Any]:
    """Return everything measured of one edit, prompt by prompt, as JSON."""
    lab, behaviour = examiner.lab, examiner.behaviour
    with lab.edited(plan):
        edited = forced(lab, behaviour.harmless["test"])
        said = lab.respond(behaviour.harmful["test"].prompts, max_new_tokens=lab.config.max_new_tokens)
    verdicts = judge_markers(said)
    return {
        "verdicts": list(verdicts),
        "refused": [v == "refuse" for v in verdicts],
        "benign_refused": behaviour.refuses_at_once(first_rows(edited)),
        "kl_first": drift.kl_first_token(first_rows(examiner.base), first_rows(edited)).tolist(),
        "kl": drift.kl_tokens(examiner.base, edited).tolist(),
        "kl_top": drift.kl_tokens_of_top(examiner.base, edited, k=TOP).tolist(),
        "recovered": None if examiner.twin is None else list(recovery.agreement(said, examiner.twin)),
    }


def summary(result: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return an edit's figures with intervals and n."""
    return {
        "refusal_rate": rate(result["refused"]).to_json(),
        "benign_refusal_rate": rate(result["benign_refused"]).to_json(),
        "kl_first_token": mean_of(result["kl_first"], unit="nats", seed=seed).to_json(),
        "kl_tokens": mean_of(result["kl"], unit="nats per token", seed=seed).to_json(),
        "kl_tokens_top100": mean_of(result["kl_top"], unit="nats per token", seed=seed).to_json(),
        "recovery": None if result["recovered"] is None else rate(result["recovered"]).to_json(),
        "verdicts": {str(verdict): n for verdict, n in count_verdicts(result["verdicts"]).items()},
    }


def compare(results: Mapping[str, Mapping[str, Any]], pairs: Sequence[tuple[str, str]], place: str, *, seed: int) -> list[dict[str, Any]]:
    """Return the tests of pairs of arms on the same prompts: McNemar for refusals, paired bootstrap for KL; Holm over each measure."""
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        first, second = results[a], results[b]
        refusals = paired_bootstrap([float(x) for x in first["refused"]], [float(x) for x in second["refused"]], unit="fraction", seed=seed)
        kl = paired_bootstrap(first["kl"], second["kl"], unit="nats per token", seed=seed)
        what = {"a": a, "b": b, "place": place}
        p = mcnemar(first["refused"], second["refused"])
        rows.append({**what, "measure": "refusal_rate", "test": "mcnemar", **_figures(refusals), "p": p})
        rows.append({**what, "measure": "kl_tokens", "test": "paired bootstrap", **_figures(kl)})
    for measure in ("refusal_rate", "kl_tokens"):
        family = [row for row in rows if row["measure"] == measure]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return rows


def _figures(difference: Difference) -> dict[str, Any]:
    kept = {"value": difference.value, "low": difference.low, "high": difference.high}
    return {"difference": kept, "p": difference.p, "n": difference.n}
