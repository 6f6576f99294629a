"""The bench of a study: the model with its writers, rendered prompts, and edits put on and taken off."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from resect.config import StudyConfig
from resect.edit import hooks
from resect.edit.plan import EditPlan, first_layer
from resect.edit.rows import applied_rows
from resect.evaluation.logprobs import next_token_logprobs
from resect.generation import Drafts, Response, Shortcuts, Stop, read, respond
from resect.models.chat import Rendered, render
from resect.models.load import ChatModel
from resect.models.lower import LowerLayers
from resect.models.writers import Writer, find_writers
from resect.prompts import Prompt

EDITS_AT_ONCE = 3
C_co = TypeVar("C_co", bound=StudyConfig, covariant=True)


@dataclass(eq=False)
class Lab(Generic[C_co]):
    """Model, writers and settings together; the only state is what is remembered: rendered prompts, and responses as drafts.

    Drafts are shared by the model, its edits and its twin: what one of them answers another often answers too.
    """

    model: ChatModel
    config: C_co
    writers: tuple[Writer, ...] = field(init=False)
    drafts: Drafts = field(init=False, default_factory=Drafts)
    shortcuts: Shortcuts = field(init=False)
    _lower: LowerLayers = field(init=False)
    _first: int | None = field(init=False, default=None)
    _rendered: dict[Prompt, Rendered] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.writers = find_writers(self.model)
        self.shortcuts = Shortcuts.only(self.config.shortcuts)
        self._lower = LowerLayers(self.model)

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

    def respond(
        self, prompts: Iterable[Prompt], *, max_new_tokens: int, model: ChatModel | None = None, stop: Stop | None = None
    ) -> tuple[Response, ...]:
        """Return the greedy responses of the model as it is now (inside `edited`, of the edited one), or of another model."""
        with self.scoring():
            return respond(
                model or self.model,
                self.render(prompts),
                max_new_tokens=max_new_tokens,
                batch_tokens=self.config.batch_tokens,
                stop=stop if self.shortcuts.stop else None,
                drafts=self.drafts,
                shortcuts=self.shortcuts,
            )

    def first_logprobs(self, prompts: Iterable[Prompt]) -> Float[Tensor, "prompt vocab"]:
        """Return the log-probabilities of the first response token."""
        with self.scoring():
            return next_token_logprobs(self.model, self.render(prompts), batch_tokens=self.config.batch_tokens)

    def first_logprobs_of(self, prompts: Iterable[Prompt], plans: Sequence[EditPlan]) -> list[Float[Tensor, "prompt vocab"]]:
        """Return the log-probabilities of the first response token under each plan."""
        rendered, found = self.render(prompts), []
        for together in (plans[i : i + self.at_once] for i in range(0, len(plans), self.at_once)):
            if len(together) == 1:
                with self.edited(together[0]):
                    found.append(self.first_logprobs(prompts))
                continue
            with applied_rows(self.model, self.writers, [plan for plan in together for _ in rendered]) as rows:
                joined = next_token_logprobs(self.model, rendered * len(together), batch_tokens=self.config.batch_tokens, edits=rows)
            found += joined.split(len(rendered))
        return found

    @property
    def at_once(self) -> int:
        """How many edits share a batch: several on an accelerator, which small batches leave idle, one on a processor, busy anyway."""
        return EDITS_AT_ONCE if self.shortcuts.rows and self.model.device.type != "cpu" else 1

    def read(self, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> tuple[Response, ...]:
        """Return stored token ids as responses."""
        return tuple(read(self.model, ids, prompt=prompt) for ids, prompt in zip(tokens, self.render(prompts), strict=True))

    @contextmanager
    def edited(self, plan: EditPlan) -> Iterator[None]:
        """Apply a plan by hooks for the time of a `with` block; the weights are never touched."""
        outer = self._first
        with hooks.applied(self.model, self.writers, plan):
            first = first_layer(self.writers, plan)
            self._first = first if outer is None else min(outer, first)
            try:
                yield
            finally:
                self._first = outer

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Take what lies below the edit that is on from memory, for passes that read nothing there (no capture, no proof)."""
        with self._lower.below((self._first or 0) if self.shortcuts.lower_layers else 0):
            yield
