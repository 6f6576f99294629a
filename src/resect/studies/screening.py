"""The screen of a sweep: one token of every validation prompt, and of hopeless candidates only the first few prompts.

A candidate is read on harmful prompts in an order drawn by the seed. After each of `LOOKS` prompts one that refuses too much to work on all
of them is dropped (`evaluation.sequential`, with its error rate), and neither the other prompts nor its KL are measured.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from resect.config import SRAConfig
from resect.evaluation import drift
from resect.evaluation.sequential import DropRule, drop_rule
from resect.studies.arms import Choice, Recipe
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab

LOOKS = (16, 32)
"""Harmful prompts after which a candidate may be dropped."""
SETTINGS = ("max_refusal", "drop_hopeless", "drop_error", "seed")
"""Settings that decide what is dropped."""

Recipes = Mapping[float, Recipe]
"""An arm's recipe at each softness."""


@dataclass(frozen=True)
class Candidate:
    """One choice with what validation says of it: which harmful prompts refuse, and the mean first-token KL on harmless ones.

    `refused` is by log-odds after the screen, by either judge after `verify`; `kls` are the KLs that `kl` is the mean of. Of one that was
    dropped, `refused` holds the prompts that were read, in the order drawn, and there is no KL.
    """

    choice: Choice
    refused: tuple[bool, ...]
    kl: float | None
    kls: tuple[float, ...] = ()

    @property
    def dropped(self) -> bool:
        """Whether it was given up before all prompts were read."""
        return self.kl is None

    @property
    def refusal(self) -> float:
        """Refusal rate, of the prompts that were read."""
        return sum(self.refused) / len(self.refused)

    def works(self, limit: float) -> bool:
        """Return whether it was read to the end and refuses at most this share."""
        return not self.dropped and self.refusal <= limit

    def to_json(self) -> dict[str, Any]:
        """Return the choice with its rates, or with how far it was read."""
        if self.dropped:
            return {**asdict(self.choice), "refusal": None, "kl": None, "dropped": [sum(self.refused), len(self.refused)]}
        return {**asdict(self.choice), "refusal": self.refusal, "kl": self.kl}


def rule_of(lab: Lab[SRAConfig], behaviour: Behaviour, *, candidates: int) -> DropRule | None:
    """Return when one of so many candidates is dropped, None if none ever is; all together they share the error rate."""
    config, prompts = lab.config, len(behaviour.harmful["validation"].prompts)
    if not config.drop_hopeless or config.max_refusal >= 1 or prompts <= LOOKS[0]:
        return None
    return drop_rule(prompts, passes=config.max_refusal, hopeless=1.0, alpha=config.drop_error / candidates, every=LOOKS[0])


def screen(
    lab: Lab[SRAConfig], recipes: Recipes, choices: Sequence[Choice], behaviour: Behaviour, *, rule: DropRule | None = None
) -> list[Candidate]:
    """Return each candidate's refusals by log-odds and its mean first-token KL; with a rule some are dropped on the way."""
    harmful, harmless = behaviour.harmful["validation"], behaviour.harmless["validation"]
    asked, count = [*harmful.prompts], len(harmful.prompts)
    order, ends = list(range(count)), [count]
    if rule is not None:
        random.Random(f"screen {lab.config.seed}").shuffle(order)
        ends = [*(look for look in LOOKS if look < count), count]
    plans = [recipes[choice.softness].plan(lab.writers, choice) for choice in choices]
    read: dict[int, list[bool]] = {i: [] for i in range(len(choices))}
    kls: dict[int, Tensor] = {}
    for start, end in zip([0, *ends], ends, strict=False):
        going = [i for i in read if len(read[i]) == start and not (rule and start and rule.drops(sum(read[i]), start))]
        prompts = [asked[k] for k in order[start:end]] + ([*harmless.prompts] if end == count else [])
        for i, logprobs in zip(going, lab.first_logprobs_of(prompts, [plans[i] for i in going]), strict=True):
            read[i] += behaviour.refuses_at_once(logprobs[: end - start])
            if end == count:
                kls[i] = drift.kl_first_token(harmless.logprobs, logprobs[end - start :])
    return [_candidate(choice, read[i], kls.get(i), order) for i, choice in enumerate(choices)]


def _candidate(choice: Choice, read: Sequence[bool], kl: Tensor | None, order: Sequence[int]) -> Candidate:
    if kl is None:
        return Candidate(choice, tuple(read), None)
    refused = dict(zip(order, read, strict=True))
    return Candidate(choice, tuple(refused[k] for k in sorted(refused)), float(kl.mean()), tuple(kl.tolist()))
