"""Scoring one edit on the test prompts: per-prompt results first (stored), rates and means from them afterwards."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.cache import Kept
from resect.config import SRAConfig, StudyConfig
from resect.edit.plan import EditPlan
from resect.evaluation import drift, recovery, rounding
from resect.evaluation.logprobs import TokenLogprobs
from resect.evaluation.perplexity import Nll, answer_nll, text_nll
from resect.evaluation.refusal import judge_agreement, log_odds
from resect.evaluation.refusal_split import kl_of_refusing
from resect.evaluation.statistics import Measurement, mean_of, perplexity, rate
from resect.evaluation.verdicts import count_verdicts, judge_markers
from resect.generation import Response
from resect.models.load import ChatModel
from resect.prompts import Prompt, PromptSet
from resect.studies.behaviour import Asked, Behaviour
from resect.studies.inputs import StudyInputs
from resect.studies.lab import Lab

TEXT = "text"
"""Name of plain-text perplexity among the capabilities."""
SETTINGS = ("max_new_tokens", "kl_tokens", "text_context", "text_stride", "keep_text")
"""Settings that `score` reads."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What edited models are compared with on test: the base's teacher-forced log-probs, and the twin's responses with its log-probs.

    Log-probs are computed by the unedited models when first asked for: a study that finds everything kept never asks.
    """

    harmless: Asked
    harmful: PromptSet
    twin: tuple[Response, ...] | None
    twin_model: ChatModel | None
    kl_tokens: int
    lab: Lab[StudyConfig] = field(compare=False)

    @functools.cached_property
    def tokens(self) -> TokenLogprobs:
        """The base's log-probs along its own responses to harmless prompts."""
        return _unedited(self.lab, self.lab.model, self.harmless.prompts, self.harmless.responses)

    @functools.cached_property
    def twin_tokens(self) -> TokenLogprobs | None:
        """The twin's log-probs along its responses to harmful prompts; None without a twin."""
        if self.twin is None or self.twin_model is None:
            return None
        return _unedited(self.lab, self.twin_model, self.harmful, self.twin)


def reference(lab: Lab[StudyConfig], inputs: StudyInputs, behaviour: Behaviour, twin: tuple[Response, ...] | None) -> Reference:
    """Return the reference of a study."""
    known = lab.only("kl_tokens")
    return Reference(behaviour.harmless["test"], inputs.harmful.test, twin, inputs.twin, known.config.kl_tokens, known)


def kl_to_twin(lab: Lab[StudyConfig], plans: Mapping[str, EditPlan], reference: Reference) -> dict[str, list[float]]:
    """Return KL(twin‖edited) of each plan per harmful test prompt along the twin's answer, nats per token; empty without a twin."""
    known, found = reference.twin_tokens, {}
    if reference.twin is None or known is None:
        return {}
    for name, plan in plans.items():
        with lab.edited(plan):
            forced = _forced(lab, lab.model, reference.harmful.prompts, reference.twin)
        found[name] = recovery.kl_to_twin(known, forced).tolist()
    return found


def score(
    lab: Lab[SRAConfig],
    plan: EditPlan,
    behaviour: Behaviour,
    reference: Reference,
    questions: Mapping[str, PromptSet],
    texts: Sequence[str],
) -> dict[str, Any]:
    """Return everything measured of one edit on the test prompts, prompt by prompt, as JSON."""
    harmful, harmless = behaviour.harmful["test"], behaviour.harmless["test"]
    base = reference.tokens  # asked for before the edit is on: it is the unedited model's
    with lab.edited(plan):
        first_harmful = lab.first_logprobs(harmful.prompts)
        answers = {name: _answers(lab, prompts.prompts) for name, prompts in questions.items()}
        if texts:
            answers[TEXT] = text_nll(lab.model, texts, context=lab.config.text_context, stride=lab.config.text_stride)
        forced = _forced(lab, lab.model, harmless.prompts.prompts, harmless.responses)
        said = {name: lab.respond(asked.prompts, max_new_tokens=lab.config.max_new_tokens) for name, asked in _sides(behaviour).items()}
    first = forced.rows[list(forced.offsets[:-1])]
    return {
        "harmful": _judged(behaviour, said["harmful"], first_harmful, keep_text=lab.config.keep_text),
        "harmless": _judged(behaviour, said["harmless"], first, keep_text=lab.config.keep_text),
        "kl_first_token": drift.kl_first_token(harmless.logprobs, first).tolist(),
        "kl_tokens": drift.kl_tokens(base, forced).tolist(),
        "refusing": _refusing(harmless.logprobs, first, behaviour, reference),
        "top1_flips": drift.top1_flips(harmless.logprobs, first).tolist(),
        "nll": {name: {"sums": nll.sums.tolist(), "tokens": list(nll.counts)} for name, nll in answers.items()},
        "recovered": _recovered(said["harmful"], reference),
    }


def rounding_alone(lab: Lab[StudyConfig], behaviour: Behaviour) -> dict[str, float]:
    """Return the drift that rounding alone makes of the base on the test prompts, by measure."""
    harmless = behaviour.harmless["test"]
    prompts, said = harmless.prompts.prompts, harmless.responses
    lengths = [min(len(r.ids), lab.config.kl_tokens) for r in said]
    vocab = harmless.logprobs.shape[1]

    def read(rows: Sequence[int]) -> TokenLogprobs:
        return _forced(lab, lab.model, [prompts[i] for i in rows], [said[i] for i in rows])

    return rounding.floors(lab.model, read, lengths, vocab=vocab)


def summary(result: Mapping[str, Any], *, seed: int, floors: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return an arm's entry of `evaluation.json`: every figure a measurement with interval and n; drift with its floor, where given."""
    known = floors or {}
    entry: dict[str, Any] = {
        "refusal_rate": refusal_rate(result["harmful"]).to_json(),
        "benign_refusal_rate": refusal_rate(result["harmless"]).to_json(),
        **{
            name: rounding.with_floor(mean_of(result[name], unit=unit, seed=seed).to_json(), known.get(name))
            for name, unit in (("kl_first_token", "nats"), ("kl_tokens", "nats per token"))
        },
        "perplexity": {name: perplexity(nll["sums"], nll["tokens"], seed=seed).to_json() for name, nll in result["nll"].items()},
    }
    if result["recovered"] is not None:
        entry["recovery"] = rate(result["recovered"]).to_json()
    return entry


def refusal_rate(side: Mapping[str, Any]) -> Measurement:
    """Return the share of responses that refuse by the opening markers."""
    return rate([v == "refuse" for v in side["verdicts"]])


def judges(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the judges agree over all test responses: markers, refusal-token log-odds, and the echo of the base's refusals."""
    sides = (result["harmful"], result["harmless"])
    markers = [v == "refuse" for side in sides for v in side["verdicts"]]
    odds = [flag for side in sides for flag in side["log_odds_refuse"]]
    agreement = judge_agreement(markers, odds)
    return {
        "agreement": agreement.share.value,
        "kappa": agreement.kappa.value,
        "kappa_low": agreement.kappa.low,
        "kappa_high": agreement.kappa.high,
        "n": agreement.kappa.n,
        "refusal_rate_log_odds": rate(result["harmful"]["log_odds_refuse"]).to_json(),
        "refusal_rate_echo": rate(result["harmful"]["echo"]).to_json(),
    }


def verdict_counts(result: Mapping[str, Any]) -> dict[str, int]:
    """Return how many harmful test prompts got each verdict."""
    return {str(verdict): n for verdict, n in count_verdicts(result["harmful"]["verdicts"]).items()}


def by_topic(values: Sequence[float], prompts: Sequence[Prompt], *, unit: str, seed: int) -> dict[str, Any]:
    """Return the mean of per-prompt values for every category that has at least two prompts."""
    topics = sorted({p.category for p in prompts if p.category is not None})
    rows = {t: [v for v, p in zip(values, prompts, strict=True) if p.category == t] for t in topics}
    return {t: mean_of(v, unit=unit, seed=seed).to_json() for t, v in rows.items() if len(v) > 1}


def drift_split(result: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return the two parts of `kl_tokens`: what is about refusing or not, and what changes in the answers."""
    parts = {"refusing": result["refusing"], "answering": [t - r for t, r in zip(result["kl_tokens"], result["refusing"], strict=True)]}
    return {name: mean_of(values, unit="nats per token", seed=seed).to_json() for name, values in parts.items()}


def _sides(behaviour: Behaviour) -> dict[str, Any]:
    return {"harmful": behaviour.harmful["test"], "harmless": behaviour.harmless["test"]}


def _forced(lab: Lab[StudyConfig], model: ChatModel, prompts: Sequence[Prompt], responses: Sequence[Response]) -> TokenLogprobs:
    return lab.logprobs_along(prompts, responses, k=lab.config.kl_tokens, model=model)


def _unedited(lab: Lab[StudyConfig], model: ChatModel, prompts: PromptSet, responses: Sequence[Response]) -> TokenLogprobs:
    def compute() -> Kept:
        found = _forced(lab, model, prompts.prompts, responses)
        return Kept(list(found.offsets), {"rows": found.rows})

    kept = lab.remember("response log-probs", compute, model, prompts, [r.ids for r in responses])
    return TokenLogprobs(kept.tensors["rows"], tuple(kept.value))


def _answers(lab: Lab[StudyConfig], prompts: Sequence[Prompt]) -> Nll:
    answers = [p.response or "" for p in prompts]
    with lab.scoring():
        options = {"batch_tokens": lab.config.batch_tokens, "share_prefix": lab.shortcuts.prefix}
        return answer_nll(lab.model, lab.render(prompts), answers, **options)


def _judged(
    behaviour: Behaviour, responses: Sequence[Response], first: Float[Tensor, "prompt vocab"], *, keep_text: bool
) -> dict[str, Any]:
    return {
        "response": [hashlib.sha256(r.text.encode()).hexdigest() for r in responses],
        "text": [r.text for r in responses] if keep_text else None,
        "verdicts": list(judge_markers(responses)),
        "log_odds": log_odds(first, behaviour.tokens).tolist(),
        "log_odds_refuse": behaviour.refuses_at_once(first),
        "echo": [behaviour.echo.heard_in(r) for r in responses],
    }


def _refusing(
    base: Float[Tensor, "prompt vocab"], edited: Float[Tensor, "prompt vocab"], behaviour: Behaviour, reference: Reference
) -> list[float]:
    """Return the part of each `kl_tokens` that is about refusing or not, in nats per token."""
    return (kl_of_refusing(base, edited, behaviour.tokens.ids) / torch.tensor(reference.tokens.counts)).tolist()


def _recovered(responses: Sequence[Response], reference: Reference) -> list[bool] | None:
    return None if reference.twin is None else list(recovery.agreement(responses, reference.twin))


def sample_rows(arm: str, side: str, prompts: PromptSet, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per test prompt for `samples.jsonl`: hashes and verdicts, and the texts only where they were kept."""
    rows = []
    for i, prompt in enumerate(prompts):
        row = {
            "arm": arm,
            "set": side,
            "prompt": prompt.key,
            "category": prompt.category,
            "verdict": result["verdicts"][i],
            "log_odds": result["log_odds"][i],
            "response": result["response"][i],
        }
        texts = {"prompt_text": prompt.text, "text": result["text"][i]} if result["text"] else {}
        rows.append(row | texts)
    return rows
