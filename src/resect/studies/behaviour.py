"""What the base model does before any edit: its responses, its verdicts, its refusal tokens, and the prompts worth extracting from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.config import StudyConfig
from resect.errors import UserError
from resect.evaluation.echo import RefusalEcho, learn_echo
from resect.evaluation.refusal import RefusalTokens, judge_log_odds, learn_cut, learn_refusal_tokens, log_odds
from resect.evaluation.verdicts import Verdict, judge_markers
from resect.generation import Response
from resect.models.load import ChatModel
from resect.prompts import PromptSet
from resect.studies.inputs import FEWEST, StudyInputs
from resect.studies.lab import Lab
from resect.studies.steps import Steps

MOST_TRUNCATED = 0.2
"""Share of responses without a verdict above which the figures would be about the length limit, not the model."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt set with the base model's verdicts and first-token log-probabilities.

    `responses` are kept on the harmless side only: drift is measured along them. Responses to harmful prompts are judged and dropped.
    """

    prompts: PromptSet
    verdicts: tuple[Verdict, ...]
    logprobs: Float[Tensor, "prompt vocab"]
    responses: tuple[Response, ...] = ()

    def where(self, keep: list[bool]) -> "Asked":
        """Return the rows whose flag is true."""
        rows = [i for i, k in enumerate(keep) if k]
        return Asked(
            self.prompts.where(keep),
            tuple(self.verdicts[i] for i in rows),
            self.logprobs[torch.tensor(rows, dtype=torch.long)],
            tuple(self.responses[i] for i in rows) if self.responses else (),
        )


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The base model on both sides; `extract` holds only prompts with the behaviour that the side stands for, if filtered."""

    harmful: Mapping[str, Asked]
    harmless: Mapping[str, Asked]
    tokens: RefusalTokens
    cut: float
    echo: RefusalEcho
    counts: dict[str, dict[str, dict[str, int]]]

    def on(self, *parts: str) -> "Behaviour":
        """Return the behaviour on these parts alone, for what must not depend on others."""
        harmful, harmless = ({part: side[part] for part in parts} for side in (self.harmful, self.harmless))
        return replace(self, harmful=harmful, harmless=harmless, counts={})

    def refuses_at_once(self, logprobs: Float[Tensor, "prompt vocab"]) -> list[bool]:
        """The log-odds judge: whether the next token is a refusal token rather than any other, at the learnt cut."""
        return list(judge_log_odds(log_odds(logprobs, self.tokens), cut=self.cut))


def observe(lab: Lab[StudyConfig], inputs: StudyInputs, steps: Steps) -> Behaviour:
    """Return the base model's behaviour on every split.

    Raises:
        UserError: the base refuses no harmful prompt, refuses every harmless one, or too few prompts pass the filter.
    """
    base = lab.only("max_new_tokens")
    answers = _Answers(base, inputs)
    harmful = {part: _judged(base, prompts, steps, part, answers) for part, prompts in inputs.harmful.items()}
    harmless = {part: _answered(base, prompts, steps, part) for part, prompts in inputs.harmless.items()}
    _check_extremes(harmful, harmless)
    tokens, cut, echo = _learn(harmful, harmless, answers, steps)
    kept = _filter(harmful, harmless) if lab.config.filter_by_behaviour else (harmful, harmless)
    counts = {
        side: {part: {"n": len(before[part].prompts), "kept": len(after[part].prompts)} for part in before}
        for side, before, after in (("harmful", harmful, kept[0]), ("harmless", harmless, kept[1]))
    }
    return Behaviour(harmful=kept[0], harmless=kept[1], tokens=tokens, cut=cut, echo=echo, counts=counts)


class _Answers:
    """The base model's responses to harmful prompts, in memory only: no file of a run holds them."""

    def __init__(self, lab: Lab[StudyConfig], inputs: StudyInputs) -> None:
        self.lab, self.inputs = lab, inputs
        self.given: dict[str, tuple[Response, ...]] = {}

    def to(self, part: str) -> tuple[Response, ...]:
        """Return the responses to a part of the harmful prompts, generated when first asked for."""
        if part not in self.given:
            prompts = dict(self.inputs.harmful.items())[part]
            self.given[part] = self.lab.respond(prompts, max_new_tokens=self.lab.config.max_new_tokens)
        return self.given[part]


def _judged(lab: Lab[StudyConfig], prompts: PromptSet, steps: Steps, part: str, answers: _Answers) -> Asked:
    name = f"base_harmful_{part}"
    verdicts: list[Verdict] = steps.json(name, lambda: list(judge_markers(answers.to(part))), key=lab.key("verdicts", prompts))
    return Asked(prompts, tuple(verdicts), _first_logprobs(lab, prompts, steps, name))


def _answered(lab: Lab[StudyConfig], prompts: PromptSet, steps: Steps, part: str) -> Asked:
    name = f"base_harmless_{part}"
    tokens = steps.json(name, lambda: response_ids(lab, lab.model, prompts), key=lab.key("responses", lab.model, prompts))
    responses = lab.read(prompts.prompts, tokens)
    return Asked(prompts, judge_markers(responses), _first_logprobs(lab, prompts, steps, name), responses)


def response_ids(lab: Lab, model: ChatModel, prompts: PromptSet) -> list[list[int]]:
    """Return the greedy responses of a model as token ids."""
    return [list(r.ids) for r in lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens, model=model)]


def _first_logprobs(lab: Lab, prompts: PromptSet, steps: Steps, name: str) -> Float[Tensor, "prompt vocab"]:
    lab = lab.only()
    return steps.tensors(name, lambda: {"logprobs": lab.first_logprobs(prompts)}, key=lab.key("first log-probs", prompts))["logprobs"]


TAUGHT = ("extract", "validation")
"""The parts that the judges learn from; the test prompts teach nothing."""


def _learn(
    harmful: Mapping[str, Asked], harmless: Mapping[str, Asked], answers: _Answers, steps: Steps
) -> tuple[RefusalTokens, float, RefusalEcho]:
    """Return refusal tokens, the cut of the log-odds and the echo, learnt from the base model's own responses."""
    rows = [side[part] for side in (harmful, harmless) for part in TAUGHT]
    verdicts: tuple[Verdict, ...] = tuple(v for asked in rows for v in asked.verdicts)

    def learn() -> dict[str, Any]:
        responses = [r for part in TAUGHT for r in answers.to(part)] + [r for part in TAUGHT for r in harmless[part].responses]
        tokens, echo = learn_refusal_tokens(responses, verdicts), learn_echo(responses, verdicts)
        return {"tokens": asdict(tokens), "runs": sorted(echo.runs)}

    learnt = steps.json("judges", learn, key=answers.lab.key("judges", rows))
    tokens = RefusalTokens(**learnt["tokens"] | {"ids": tuple(learnt["tokens"]["ids"])})
    odds = log_odds(torch.cat([asked.logprobs for asked in rows]), tokens)
    cut = learn_cut(odds, [v == "refuse" for v in verdicts]).log_odds
    return tokens, cut, RefusalEcho(frozenset(tuple(run) for run in learnt["runs"]))


def _check_extremes(harmful: Mapping[str, Asked], harmless: Mapping[str, Asked]) -> None:
    refused = sum(v == "refuse" for asked in harmful.values() for v in asked.verdicts)
    asked_harmful = sum(len(asked.verdicts) for asked in harmful.values())
    if refused == 0:
        raise UserError(
            f"The base model refuses none of the {asked_harmful} harmful prompts, so there is no refusal to find; "
            "use prompts that it refuses, or check the chat template and the system prompt."
        )
    answered = sum(v != "refuse" for asked in harmless.values() for v in asked.verdicts)
    if answered == 0:
        total = sum(len(asked.verdicts) for asked in harmless.values())
        raise UserError(
            f"The base model refuses all of the {total} harmless prompts, so refusal has nothing to stand out from; "
            "use prompts that it answers, or check the chat template and the system prompt."
        )
    verdicts = [v for side in (harmful, harmless) for asked in side.values() for v in asked.verdicts]
    cut_off = verdicts.count("truncated") / len(verdicts)
    if cut_off > MOST_TRUNCATED:
        raise UserError(
            f"{cut_off:.0%} of the base model's responses end before their opening is over and cannot be judged; "
            "raise max_new_tokens, or switch thinking off."
        )


def _filter(harmful: Mapping[str, Asked], harmless: Mapping[str, Asked]) -> tuple[dict[str, Asked], dict[str, Asked]]:
    """Keep, in extract only, harmful prompts that are refused and harmless ones that are answered; validation and test stay whole."""
    kept_harmful = dict(harmful) | {"extract": harmful["extract"].where([v == "refuse" for v in harmful["extract"].verdicts])}
    kept_harmless = dict(harmless) | {"extract": harmless["extract"].where([v == "comply" for v in harmless["extract"].verdicts])}
    for side, asked, what in (("harmful", kept_harmful, "refused"), ("harmless", kept_harmless, "answered")):
        if len(asked["extract"].prompts) < FEWEST:
            raise UserError(
                f"Only {len(asked['extract'].prompts)} {side} extraction prompts are {what} by the base; at least {FEWEST} are needed: "
                "give more prompts, or switch the filter off (--no-filter)."
            )
    return kept_harmful, kept_harmless
