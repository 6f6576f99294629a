"""The bench of a study: the model with its writers, rendered prompts, and edits put on and taken off."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from resect.config import StudyConfig
from resect.edit import hooks
from resect.edit.plan import EditPlan
from resect.evaluation.logprobs import next_token_logprobs
from resect.generation import Response, read, respond
from resect.models.chat import Rendered, render
from resect.models.load import ChatModel
from resect.models.writers import Writer, find_writers
from resect.prompts import Prompt

C_co = TypeVar("C_co", bound=StudyConfig, covariant=True)


@dataclass(eq=False)
class Lab(Generic[C_co]):
    """Model, writers and settings together; the only state is the memo of rendered prompts."""

    model: ChatModel
    config: C_co
    writers: tuple[Writer, ...] = field(init=False)
    _rendered: dict[Prompt, Rendered] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.writers = find_writers(self.model)

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.model.blocks)

    def render(self, prompts: Iterable[Prompt]) -> tuple[Rendered, ...]:
        """Return the prompts as tokens; each is rendered once a run."""
        wanted = tuple(prompts)
        new = [p for p in dict.fromkeys(wanted) if p not in self._rendered]
        if new:
            rendered = render(self.model.tokenizer, new, system=self.config.system, thinking=self.config.thinking)
            self._rendered.update(zip(new, rendered, strict=True))
        return tuple(self._rendered[p] for p in wanted)

    def respond(self, prompts: Iterable[Prompt], *, max_new_tokens: int, model: ChatModel | None = None) -> tuple[Response, ...]:
        """Return the greedy responses of the model as it is now (inside `edited`, of the edited one), or of another model."""
        return respond(model or self.model, self.render(prompts), max_new_tokens=max_new_tokens, batch_tokens=self.config.batch_tokens)

    def first_logprobs(self, prompts: Iterable[Prompt]) -> Float[Tensor, "prompt vocab"]:
        """Return the log-probabilities of the first response token."""
        return next_token_logprobs(self.model, self.render(prompts), batch_tokens=self.config.batch_tokens)

    def read(self, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> tuple[Response, ...]:
        """Return stored token ids as responses."""
        return tuple(read(self.model, ids, prompt=prompt) for ids, prompt in zip(tokens, self.render(prompts), strict=True))

    @contextmanager
    def edited(self, plan: EditPlan) -> Iterator[None]:
        """Apply a plan by hooks for the time of a `with` block; the weights are never touched."""
        with hooks.applied(self.model, self.writers, plan):
            yield
