"""The model of a study with its writers, rendered prompts, edits put on and taken off, and the names under which results are kept."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import astuple, dataclass, field
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from resect.cache import Cache, Kept, Key, remember
from resect.config import StudyConfig, only
from resect.digests import digest, tensor_digest
from resect.edit import hooks
from resect.edit.plan import EditPlan, first_layer
from resect.edit.rows import applied_rows
from resect.evaluation.logprobs import TokenLogprobs, next_token_logprobs, response_logprobs
from resect.generation import Drafts, Response, Shortcuts, Stop, read, respond
from resect.models.chat import Rendered, render
from resect.models.identity import has_hooks, identity
from resect.models.load import ChatModel
from resect.models.lower import LowerLayers
from resect.models.writers import Writer, find_writers, from_tensors, to_tensors
from resect.prompts import Prompt, PromptSet

log = logging.getLogger(__name__)

PASS = ("system", "thinking", "batch_tokens", "shortcuts")
"""Settings that every forward pass depends on."""

EDITS_AT_ONCE = 3
C_co = TypeVar("C_co", bound=StudyConfig, covariant=True)


@dataclass(eq=False)
class Lab(Generic[C_co]):
    """Model, writers and settings together; the only state is what is remembered: rendered prompts, digests, and responses as drafts.

    Drafts are shared by the model, its edits and its twin: what one of them answers another often answers too.
    """

    model: ChatModel
    config: C_co
    cache: Cache | None = None
    writers: tuple[Writer, ...] = field(init=False)
    drafts: Drafts = field(init=False, default_factory=Drafts)
    shortcuts: Shortcuts = field(init=False)
    _lower: LowerLayers = field(init=False)
    _edited_from: list[int] = field(init=False, default_factory=list)
    _rendered: dict[Prompt, Rendered] = field(init=False, default_factory=dict)
    _asked: dict[Prompt, str] = field(init=False, default_factory=dict)
    _said: dict[Response, str] = field(init=False, default_factory=dict)
    _identities: dict[ChatModel, str] = field(init=False, default_factory=dict)
    _values: WeakKeyDictionary[object, str] = field(init=False, default_factory=WeakKeyDictionary)
    _digests: WeakTensorKeyDictionary = field(init=False, default_factory=WeakTensorKeyDictionary)

    def __post_init__(self) -> None:
        if self.cache is not None and has_hooks(self.model):
            log.warning("%s has hooks of somebody else, so nothing computed with it is kept or taken from the cache.", self.model.name)
            self.cache = None
        self.writers = self._writers()
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
            options = {"batch_tokens": self.config.batch_tokens, "share_prefix": self.shortcuts.prefix}
            return next_token_logprobs(self.model, self.render(prompts), **options)

    def logprobs_along(
        self, prompts: Iterable[Prompt], responses: Sequence[Response], *, k: int, model: ChatModel | None = None
    ) -> TokenLogprobs:
        """Return the log-probabilities along the first k tokens of given responses, of the model as it is now or of another."""
        options = {"batch_tokens": self.config.batch_tokens, "share_prefix": self.shortcuts.prefix}
        with self.scoring():
            return response_logprobs(model or self.model, self.render(prompts), responses, k=k, **options)

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
        with hooks.applied(self.model, self.writers, plan):
            self._edited_from.append(first_layer(self.writers, plan))
            try:
                yield
            finally:
                self._edited_from.pop()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Take what lies below the edit that is on from memory, for passes that read nothing there (no capture, no proof)."""
        with self._lower.below(min(self._edited_from, default=0) if self.shortcuts.lower_layers else 0):
            yield

    def only(self, *settings: str) -> "Lab[C_co]":
        """Return the lab with these settings and `PASS`; reading another one is an error, since no key would tell it apart."""
        narrow = copy(self)
        narrow.config = only(self.config, *PASS, *settings)
        return narrow

    def key(self, what: str, *made_of: object) -> Key | None:
        """Return the name of what is made with the model and the settings of this lab from these values and nothing else.

        Prompts count with the tokens that they become. None without a cache.
        """
        if self.cache is None:
            return None
        special = {ChatModel: self._identity, Tensor: self._tensor_digest, PromptSet: lambda p: p.prompts, Prompt: self._as_asked}
        special[Response] = self._as_said
        parts = [what, self.model, dict(sorted(vars(self.config).items())), made_of]
        return Key(digest(parts, special, self._values), self.model.name)

    def remember(self, what: str, compute: Callable[[], Kept], *made_of: object) -> Kept:
        """Return what the cache holds under the key of these values, or compute it and keep it there."""
        return remember(self.cache, self.key(what, *made_of), compute, step=what)

    def _writers(self) -> tuple[Writer, ...]:
        def compute() -> Kept:
            gains, description = to_tensors(find_writers(self.model))
            return Kept(description, gains)

        kept = self.only().remember("writers", compute)
        return from_tensors(kept.tensors, kept.value)

    def _identity(self, model: ChatModel) -> str:
        if model not in self._identities:
            self._identities[model] = identity(model)
        return self._identities[model]

    def _tensor_digest(self, tensor: Tensor) -> str:
        if tensor not in self._digests:
            self._digests[tensor] = tensor_digest(tensor)
        return self._digests[tensor]

    def _as_asked(self, prompt: Prompt) -> str:
        if prompt not in self._asked:
            (rendered,) = self.render([prompt])
            self._asked[prompt] = digest([astuple(prompt), rendered.ids, rendered.user_end, rendered.in_thinking])
        return self._asked[prompt]

    def _as_said(self, response: Response) -> str:
        if response not in self._said:
            self._said[response] = digest(astuple(response))
        return self._said[response]
