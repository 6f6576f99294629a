"""What the base model does before any edit: its responses, its verdicts, its refusal tokens, and the prompts worth extracting from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation.echo import RefusalEcho, learn_echo
from resect.evaluation.refusal import RefusalTokens, judge_log_odds, learn_cut, learn_refusal_tokens, log_odds
from resect.evaluation.verdicts import Verdict, judge_markers
from resect.generation import Response
from resect.prompts import PromptSet
from resect.studies.inputs import StudyInputs
from resect.studies.lab import Lab
from resect.studies.steps import Steps


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt set with the base model's responses, verdicts and first-token log-probabilities."""

    prompts: PromptSet
    responses: tuple[Response, ...]
    verdicts: tuple[Verdict, ...]
    logprobs: Float[Tensor, "prompt vocab"]

    def where(self, keep: list[bool]) -> "Asked":
        """Return the rows whose flag is true."""
        rows = [i for i, k in enumerate(keep) if k]
        return Asked(
            self.prompts.where(keep),
            tuple(self.responses[i] for i in rows),
            tuple(self.verdicts[i] for i in rows),
            self.logprobs[torch.tensor(rows, dtype=torch.long)],
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

    def refuses_at_once(self, logprobs: Float[Tensor, "prompt vocab"]) -> list[bool]:
        """The log-odds judge: whether the next token is a refusal token rather than any other, at the learnt cut."""
        return list(judge_log_odds(log_odds(logprobs, self.tokens), cut=self.cut))


def observe(lab: Lab, inputs: StudyInputs, steps: Steps) -> Behaviour:
    """Return the base model's behaviour on every split.

    Raises:
        UserError: the base refuses no harmful prompt, refuses every harmless one, or too few prompts pass the filter.
    """
    harmful = {part: _ask(lab, prompts, steps, f"base_harmful_{part}") for part, prompts in inputs.harmful.items()}
    harmless = {part: _ask(lab, prompts, steps, f"base_harmless_{part}") for part, prompts in inputs.harmless.items()}
    _check_extremes(harmful, harmless)
    known = _known(harmful, harmless)
    tokens = learn_refusal_tokens(known.responses, known.verdicts)
    refused = [v == "refuse" for v in known.verdicts]
    kept = _filter(harmful, harmless) if lab.config.filter_by_behaviour else (harmful, harmless)
    counts = {
        side: {part: {"n": len(before[part].prompts), "kept": len(after[part].prompts)} for part in before}
        for side, before, after in (("harmful", harmful, kept[0]), ("harmless", harmless, kept[1]))
    }
    return Behaviour(
        harmful=kept[0],
        harmless=kept[1],
        tokens=tokens,
        cut=learn_cut(log_odds(known.logprobs, tokens), refused).log_odds,
        echo=learn_echo(known.responses, known.verdicts),
        counts=counts,
    )


def _ask(lab: Lab, prompts: PromptSet, steps: Steps, name: str) -> Asked:
    tokens = steps.json(name, lambda: [list(r.ids) for r in lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens)])
    responses = lab.read(prompts.prompts, tokens)
    verdicts = judge_markers(responses)
    logprobs = steps.tensors(name, lambda: {"logprobs": lab.first_logprobs(prompts)})["logprobs"]
    return Asked(prompts, responses, verdicts, logprobs)


def _known(harmful: Mapping[str, Asked], harmless: Mapping[str, Asked]) -> Asked:
    """Return all rows of extract and validation: the judges learn from these, the test prompts teach nothing."""
    rows = [side[part] for side in (harmful, harmless) for part in ("extract", "validation")]
    return Asked(
        PromptSet("known", tuple(p for asked in rows for p in asked.prompts)),
        tuple(r for asked in rows for r in asked.responses),
        tuple(v for asked in rows for v in asked.verdicts),
        torch.cat([asked.logprobs for asked in rows]),
    )


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


def _filter(harmful: Mapping[str, Asked], harmless: Mapping[str, Asked]) -> tuple[dict[str, Asked], dict[str, Asked]]:
    """Keep, in extract only, harmful prompts that are refused and harmless ones that are answered; validation and test stay whole."""
    kept_harmful = dict(harmful) | {"extract": harmful["extract"].where([v == "refuse" for v in harmful["extract"].verdicts])}
    kept_harmless = dict(harmless) | {"extract": harmless["extract"].where([v != "refuse" for v in harmless["extract"].verdicts])}
    for side, asked, what in (("harmful", kept_harmful, "refused"), ("harmless", kept_harmless, "answered")):
        if len(asked["extract"].prompts) < 2:
            raise UserError(
                f"Only {len(asked['extract'].prompts)} {side} extraction prompts are {what} by the base model; at least 2 are needed: "
                "give more prompts, or switch the filter off (--no-filter)."
            )
    return kept_harmful, kept_harmless
