"""Checkpoints scored on a suite: one model, two against each other, or a model and its edit; each judged by at least two judges.

`run` is the table of contents. Each finished part is a step on disk, so that a run which stopped, or whose judge died, goes on where it
was. Responses to harmful prompts are judged and dropped: steps hold verdicts and hashes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from jaxtyping import Float
from torch import Tensor

from resect.config import SRAConfig
from resect.errors import UserError
from resect.evaluation import rounding
from resect.evaluation.grading import GRADERS
from resect.evaluation.judges import Judge
from resect.evaluation.logprobs import TokenLogprobs, next_token_logprobs, response_logprobs
from resect.evaluation.perplexity import Nll, answer_nll, text_nll
from resect.evaluation.token_drift import Read, drift_along
from resect.generation import Response, read, respond
from resect.models.chat import Rendered, render
from resect.models.differences import vocabularies
from resect.models.load import ChatModel
from resect.prompts import Prompt, PromptSet
from resect.prompts.suite import Suite
from resect.studies.steps import Steps

SETTINGS = ("seed", "system", "thinking", "max_new_tokens", "kl_tokens", "text_context", "text_stride", "batch_tokens")
"""The settings of a study that an evaluation reads."""
BASE = "base"
"""The arm that the others are compared with."""
SIDES = ("harmful", "harmless")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be scored; `put_on` applies its edit for the time of a `with` block."""

    model: ChatModel
    put_on: Callable[[], AbstractContextManager[None]] = nullcontext


class Arm:
    """A subject asked what a suite asks. Its responses are in memory only, made when first needed."""

    def __init__(self, subject: Subject, suite: Suite, config: SRAConfig) -> None:
        self.subject, self.suite, self.config = subject, suite, config
        self._rendered: dict[Prompt, Rendered] = {}

    @property
    def model(self) -> ChatModel:
        """The model without its edit."""
        return self.subject.model

    @property
    def vocab(self) -> int:
        """Size of the vocabulary, as the head counts it."""
        return int(self.model.network.config.get_text_config(decoder=True).vocab_size)

    @cached_property
    def responses(self) -> dict[str, tuple[Response, ...]]:
        """Greedy responses to the harmful and the harmless prompts."""
        return {side: self.respond(prompts) for side, prompts in sides(self.suite).items()}

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """The harmful and the harmless prompts."""
        return tuple(prompt for prompts in sides(self.suite).values() for prompt in prompts)

    @property
    def said(self) -> tuple[Response, ...]:
        """The response to each of them."""
        return tuple(chain.from_iterable(self.responses[side] for side in SIDES))

    def render(self, prompts: Iterable[Prompt]) -> tuple[Rendered, ...]:
        """Return the prompts as tokens; each is rendered once."""
        wanted = tuple(prompts)
        new = [p for p in dict.fromkeys(wanted) if p not in self._rendered]
        rendered = render(self.model.tokenizer, new, system=self.config.system, thinking=self.config.thinking) if new else ()
        self._rendered.update(zip(new, rendered, strict=True))
        return tuple(self._rendered[p] for p in wanted)

    def respond(self, prompts: Iterable[Prompt]) -> tuple[Response, ...]:
        """Return greedy responses of the model with its edit on."""
        rendered = self.render(prompts)
        if not rendered:
            return ()
        with self.subject.put_on():
            return respond(self.model, rendered, max_new_tokens=self.config.max_new_tokens, batch_tokens=self.config.batch_tokens)

    def first_logprobs(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt vocab"]:
        """Return the log-probabilities of the first response token, with the edit on."""
        with self.subject.put_on():
            return next_token_logprobs(self.model, self.render(prompts), batch_tokens=self.config.batch_tokens)

    def along(self, prompts: Sequence[Prompt], said: Sequence[Response]) -> TokenLogprobs:
        """Return the log-probabilities along given responses, teacher-forced, with the edit on."""
        with self.subject.put_on():
            return response_logprobs(self.model, self.render(prompts), said, k=self.config.kl_tokens, batch_tokens=self.config.batch_tokens)

    def read(self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> tuple[Response, ...]:
        """Return stored token ids as responses."""
        return tuple(read(self.model, tokens, prompt=prompt) for tokens, prompt in zip(ids, self.render(prompts), strict=True))


@dataclass(frozen=True, eq=False)
class Named:
    """A judge as the user named it: how it is made for an arm, what identifies it, and whether to ask again what it left unscored."""

    name: str
    make: Callable[[Arm], Judge]
    identity: str
    ask_again: bool = False

    @property
    def key(self) -> str:
        """A short name for files."""
        return hashlib.sha256(f"{self.name}\n{self.identity}".encode()).hexdigest()[:12]


def sides(suite: Suite) -> dict[str, PromptSet]:
    """Return the prompts that are judged."""
    return {"harmful": suite.harmful, "harmless": suite.harmless}


def run(
    arms: Mapping[str, Arm], judges: Sequence[Named], steps: Steps, *, refusal_tokens: Callable[[], Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """Return every arm's results, prompt by prompt: verdicts of each judge, drift from the base, likelihoods and grades.

    A judge that fails leaves its error in the place of its verdicts, and is asked again by the next run.

    Raises:
        UserError: NaN logits, a tokenizer without a template, and whatever else keeps a model from being read.
    """
    base = arms[BASE]
    return {
        name: {
            "verdicts": {judge.name: _verdicts(name, arm, judge, steps) for judge in judges if arm.asked},
            "responses": steps.json(f"{name}_responses", lambda arm=arm: _hashes(arm)),
            "drift": None if name == BASE or not base.suite.harmless else _drift(name, arm, base, steps, refusal_tokens),
            "rounding": None if name == BASE or not base.suite.harmless else _rounding(name, arm, base, steps),
            "nll": steps.json(f"{name}_likelihood", lambda arm=arm: _likelihoods(arm)),
            "grades": steps.json(f"{name}_grades", lambda arm=arm: _grades(arm)),
        }
        for name, arm in arms.items()
    }


def _verdicts(name: str, arm: Arm, judge: Named, steps: Steps) -> dict[str, Any]:
    """Return {"harmful": […], "harmless": […], "unscored": reasons with counts}, or {"error": why}."""
    try:
        step = f"{name}_judged_{judge.key}"
        return steps.json(step, lambda: _judge(arm, judge), whole=lambda found: not (judge.ask_again and found["unscored"]))
    except UserError as error:
        return {"error": str(error)}


def _judge(arm: Arm, judge: Named) -> dict[str, Any]:
    found = judge.make(arm).judge(arm.asked, arm.said)
    split = len(arm.suite.harmful)
    why = Counter(j.reason for j in found if j.verdict == "unscored")
    verdicts = [j.verdict for j in found]
    return {"harmful": verdicts[:split], "harmless": verdicts[split:], "unscored": dict(why.most_common())}


def _hashes(arm: Arm) -> dict[str, list[str]]:
    return {side: [hashlib.sha256(r.text.encode()).hexdigest() for r in arm.responses[side]] for side in SIDES}


def _drift(name: str, arm: Arm, base: Arm, steps: Steps, refusal_tokens: Callable[[], Sequence[int]]) -> dict[str, Any]:
    """Return the drift from the base along its own responses to the harmless prompts, or {"error": why} if there can be none."""
    if why := no_drift(base, arm):
        return {"error": why}
    prompts = base.suite.harmless.prompts
    responses = _said(base, steps)

    def measure() -> dict[str, Any]:
        said = responses()
        ours, theirs = (_reader(which, prompts, said) for which in (base, arm))
        return drift_along(ours, theirs, _lengths(base, said), vocab=base.vocab, refusal_tokens=refusal_tokens()).to_json()

    return steps.json(f"{name}_drift", measure)


def _rounding(name: str, arm: Arm, base: Arm, steps: Steps) -> dict[str, float] | None:
    """Return the drift that rounding alone makes of the model in the coarser dtype, the base if they are alike; None without drift."""
    if no_drift(base, arm):
        return None
    responses = _said(base, steps)
    which, called = (base, BASE) if rounding.coarser(base.model, arm.model) is base.model else (arm, name)

    def measure() -> dict[str, float]:
        said = responses()
        read = _reader(which, base.suite.harmless.prompts, said)
        return rounding.floors(which.model, read, _lengths(base, said), vocab=base.vocab)

    return steps.json(f"{called}_rounding", measure)


def _said(base: Arm, steps: Steps) -> Callable[[], tuple[Response, ...]]:
    """Return what gives the base's responses to the harmless prompts, from disk or memory."""
    ids = steps.json("base_harmless", lambda: [list(r.ids) for r in base.responses["harmless"]])
    return lambda: base.read(base.suite.harmless.prompts, ids)


def _reader(arm: Arm, prompts: Sequence[Prompt], said: Sequence[Response]) -> Read:
    return lambda rows: arm.along([prompts[i] for i in rows], [said[i] for i in rows])


def _lengths(arm: Arm, said: Sequence[Response]) -> list[int]:
    return [min(len(r.ids), arm.config.kl_tokens) for r in said]


def no_drift(base: Arm, arm: Arm) -> str | None:
    """Return why two models' distributions cannot be compared, None if they can: token by token they must mean the same."""
    if words := vocabularies(base.model, arm.model):
        return f"{words}, so no KL between them can be told; compare verdicts."
    return None


def _likelihoods(arm: Arm) -> dict[str, Any]:
    """Return sums of −log p and token counts of the reference answers and of the plain texts."""
    found: dict[str, Nll] = {}
    questions, config = arm.suite.questions, arm.config
    with arm.subject.put_on():
        if questions:
            answers = [p.response or "" for p in questions]
            found["questions"] = answer_nll(arm.model, arm.render(questions), answers, batch_tokens=config.batch_tokens)
        if arm.suite.texts:
            span = {"context": config.text_context, "stride": config.text_stride}
            found["text"] = text_nll(arm.model, arm.suite.texts, **span, batch_tokens=config.batch_tokens)
    return {name: {"sums": nll.sums.tolist(), "tokens": list(nll.counts)} for name, nll in found.items()}


def _grades(arm: Arm) -> dict[str, list[bool | None]]:
    """Return, for each way of grading that a question asks for, whether each question was answered right; None where it does not ask."""
    questions, grades = arm.suite.questions.prompts, arm.suite.grades
    graded = [i for i, grade in enumerate(grades) if grade is not None]
    said = dict(zip(graded, arm.respond(questions[i] for i in graded), strict=True))

    def right(i: int, way: str) -> bool | None:
        # What is graded as code is also either equal to the reference or not.
        applies = i in said and (grades[i] == way or way == "exact")
        return GRADERS[way](said[i], questions[i].response or "") if applies else None

    ways = [way for way in GRADERS if any(right(i, way) is not None for i in graded)]
    return {way: [right(i, way) for i in range(len(questions))] for way in ways}
