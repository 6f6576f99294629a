"""The model of a study with its writers, rendered prompts, edits put on and taken off, and the names under which results are kept."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import astuple, dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from resect.cache import Cache, Kept, Key
from resect.config import SRAConfig
from resect.digests import digest, tensor_digest
from resect.edit import hooks
from resect.edit.plan import EditPlan
from resect.evaluation.logprobs import next_token_logprobs
from resect.generation import Response, read, respond
from resect.models.chat import Rendered, render
from resect.models.identity import has_hooks, identity
from resect.models.load import ChatModel
from resect.models.writers import Writer, find_writers, from_tensors, to_tensors
from resect.prompts import Prompt, PromptSet

log = logging.getLogger(__name__)

PASS = ("system", "thinking", "batch_tokens")
"""Settings that every forward pass depends on."""


@dataclass(eq=False)
class Lab:
    """Model, writers and settings together; the only state are memos: of rendered prompts, and of digests."""

    model: ChatModel
    config: SRAConfig
    cache: Cache | None = None
    writers: tuple[Writer, ...] = field(init=False)
    _rendered: dict[Prompt, Rendered] = field(init=False, default_factory=dict)
    _asked: dict[Prompt, str] = field(init=False, default_factory=dict)
    _identities: dict[ChatModel, str] = field(init=False, default_factory=dict)
    _digests: WeakTensorKeyDictionary = field(init=False, default_factory=WeakTensorKeyDictionary)

    def __post_init__(self) -> None:
        if self.cache is not None and has_hooks(self.model):
            log.warning("%s has hooks of somebody else, so nothing computed with it is kept or taken from the cache.", self.model.name)
            self.cache = None
        self.writers = self._writers()

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

    def only(self, *settings: str) -> "Lab":
        """Return the lab with these settings and `PASS`; reading another one is an error, since no key would tell it apart."""
        narrow = copy(self)
        narrow.config = self.config.only(*PASS, *settings)
        return narrow

    def key(self, what: str, *made_of: object) -> Key | None:
        """Return the name of what is made with the model and the settings of this lab from these values and nothing else.

        Prompts count with the tokens that they become. None without a cache.
        """
        if self.cache is None:
            return None
        special = {ChatModel: self._identity, Tensor: self._tensor_digest, PromptSet: lambda p: p.prompts, Prompt: self._as_asked}
        parts = [what, self.model, dict(sorted(vars(self.config).items())), made_of]
        return Key(digest(parts, special), self.model.name)

    def _writers(self) -> tuple[Writer, ...]:
        key = self.only().key("writers")
        kept = self.cache.find(key) if self.cache and key else None
        if kept is not None:
            return from_tensors(kept.tensors, kept.value)
        found = find_writers(self.model)
        if self.cache and key:
            tensors, description = to_tensors(found)
            self.cache.keep(key, Kept(description, tensors), step="writers")
        return found

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
