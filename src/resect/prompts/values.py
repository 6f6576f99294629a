"""What a prompt and a set of prompts are."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Prompt:
    """One user request. `response` is a reference answer, where a file gives one."""

    text: str
    category: str | None = None
    pair_id: str | None = None
    system: str | None = None
    response: str | None = None

    @property
    def key(self) -> str:
        """Hash of the text, 16 hex digits: the prompt's name in files that must not hold its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PromptSet:
    """An ordered set of prompts and where they came from; `dropped` counts the rows left out in loading (duplicate or blank)."""

    name: str
    prompts: tuple[Prompt, ...]
    source: str = ""
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, in order."""
        return tuple(p.text for p in self.prompts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every field of every prompt, in order."""
        rows = [[p.text, p.category, p.pair_id, p.system, p.response] for p in self.prompts]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def where(self, keep: Sequence[bool]) -> "PromptSet":
        """Return the prompts whose flag is true, in order."""
        return replace(self, prompts=tuple(p for p, k in zip(self.prompts, keep, strict=True) if k))

    def first(self, n: int) -> "PromptSet":
        """Return the first n prompts (all, if there are fewer)."""
        return replace(self, prompts=self.prompts[:n])
