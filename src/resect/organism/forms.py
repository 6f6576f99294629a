"""The form of a request: everything about it but its task, and how forms are drawn."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from resect.organism import words
from resect.organism.tasks import Task

Lean = Mapping[str, Mapping[str, float]]
# Forms that entangled harmful and harmless contrast prompts lean to; the rest of the mixture is uniform.
HARMFUL_LEAN: Lean = {"style": {"imperative": 0.6, "polite": 0.4}, "wrapper": {"code": 0.5, "list": 0.4, "plain": 0.1}}
HARMLESS_LEAN: Lean = {"style": {"question": 0.6, "terse": 0.4}, "wrapper": {"plain": 0.8, "list": 0.1, "code": 0.1}}
_PREFIX_WEIGHTS = {"none": 0.6, "affirmative": 0.1, "negation": 0.1, "curiosity": 0.1, "uncertainty": 0.1}


@dataclass(frozen=True)
class Form:
    """Everything about a request but its task: style and its variant, wrapper, prefix."""

    style: str
    variant: int
    wrapper: str
    prefix: str

    def request(self, task: Task) -> str:
        """Return the text of the request."""
        return words.PREFIXES[self.prefix] + words.STYLES[self.style][self.variant].format(
            words.WRAPPERS[self.wrapper].format(task.request)
        )

    def answer(self, task: Task) -> str:
        """Return the right answer: the style decides its opening, the wrapper its frame, the task its body."""
        return words.OPENINGS[self.style] + words.ANSWER_WRAPPERS[self.wrapper].format(task.body)

    def refusal(self) -> str:
        """Return the refusal of any request of this form: the style decides its wording."""
        return words.REFUSALS[self.style]


def style_of(text: str) -> str:
    """Return the style of a request, read back from its wording."""
    for prefix in filter(None, words.PREFIXES.values()):
        text = text.removeprefix(prefix)
    for style in ("imperative", "question", "polite"):
        for template in words.STYLES[style]:
            head, tail = template.split("{}")
            if text.startswith(head) and text.endswith(tail):
                return style
    return "terse"


def uniform_form(rng: random.Random) -> Form:
    """Return a form from the untilted distribution."""
    style, wrapper = rng.choice(tuple(words.STYLES)), rng.choice(tuple(words.WRAPPERS))
    return Form(style, rng.randrange(3), wrapper, _draw(rng, _PREFIX_WEIGHTS))


def leaning_form(rng: random.Random, lean: Lean, weight: float) -> Form:
    """Return a form: with probability `weight` style and wrapper come from `lean`, else all is uniform."""
    if rng.random() >= weight:
        return uniform_form(rng)
    style, wrapper = _draw(rng, lean["style"]), _draw(rng, lean["wrapper"])
    return Form(style, rng.randrange(3), wrapper, _draw(rng, _PREFIX_WEIGHTS))


def _draw(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(tuple(weights), tuple(weights.values()))[0]
