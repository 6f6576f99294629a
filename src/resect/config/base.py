"""The knobs that every study has."""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resect.errors import UserError, unknown_name

SHORTCUTS = ("retire", "stop", "drafts", "memory", "rows", "lower_layers", "prefix")
"""What the engine does to save time (`generation.Shortcuts`)."""
UNMEASURED = ("static_cache", "graphs")
"""What it does on request only: meant for a GPU, and measured on none."""


class StudyConfig(BaseModel):
    """Settings shared by the studies; no value of a paper is assumed where the paper gives none."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    seed: int = 0
    """Seed of the splits, the random control and the bootstrap."""

    position: Literal["last", "last_user", "mean"] | int = "last"
    """Token whose activation is read: last token of the rendered prompt, last token of the user's text, mean, or a negative index."""
    system: str | None = None
    """System prompt put before every prompt that has none of its own."""
    thinking: bool = False
    """Whether a thinking template starts in thinking mode."""
    filter_by_behaviour: bool = True
    """Extract only from harmful prompts that the base refuses and harmless ones that it answers."""
    extract_prompts: int = Field(default=256, ge=2)
    """Most prompts a side for extracting directions."""
    validation_prompts: int = Field(default=64, ge=2)
    """Most prompts a side for choosing strength and layers."""
    test_prompts: int = Field(default=128, ge=2)
    """Most prompts a side for the final scores."""
    max_refusal: float = Field(default=0.02, ge=0, le=1)
    """Refusal rate at or below which a candidate counts as working."""
    matched_refusal: float = Field(default=0.05, ge=0, lt=1)
    """Refusal rate at which the KL of all arms is read off; a little above `max_refusal`, so that it does not hang on two prompts."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens."""
    opening_tokens: int = Field(default=48, ge=1)
    """Response tokens read when only the verdict is wanted."""
    kl_tokens: int = Field(default=16, ge=1)
    """Tokens of the base's own response over which the teacher-forced KL is taken."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens (padding included) in one forward pass."""
    shortcuts: tuple[str, ...] = SHORTCUTS
    """What the engine may do to save time; empty decodes plainly, with the same tokens. On request also `static_cache` and `graphs`."""
    processes: int = Field(default=0, ge=0)
    """Processes that share a study of a small model on a processor; 0 is one a core. The figures do not depend on it."""

    @model_validator(mode="after")
    def _check_shared(self) -> "StudyConfig":
        for name in self.shortcuts:
            if name not in SHORTCUTS + UNMEASURED:
                raise unknown_name("shortcut", name, SHORTCUTS + UNMEASURED)
        if isinstance(self.position, int) and self.position >= 0:
            raise UserError(f"position {self.position} is not allowed; use last, last_user, mean or a negative integer (-1 is last).")
        return self


Config = TypeVar("Config", bound=StudyConfig)


def only(config: Config, *names: str) -> Config:
    """Return a view that has these settings and no others: reading another one is an AttributeError."""
    view = config.model_copy()
    object.__setattr__(view, "__dict__", {name: getattr(config, name) for name in names})
    return view
