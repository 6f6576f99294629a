"""Which shortcuts the engine may take. None of them changes a token; each can be switched off to see what it is worth."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from resect.errors import unknown_name


@dataclass(frozen=True)
class Shortcuts:
    """One flag a shortcut.

    `retire`: rows that ended leave the batch. `stop`: rows end once their verdict is settled, where only the verdict is asked for.
    `drafts`: known responses are verified in one pass. `memory`: batches are cut to the memory that is there, as predicted. `rows`:
    several edits share a batch. `lower_layers`: what lies below the first edited block is taken from the base model. `prefix`: what all
    prompts begin with is fed once. Off unless asked for, since nobody has measured them on a GPU: `static_cache`: decoding goes on in a
    cache of fixed length; `graphs`: on a CUDA device it does, whether or not `static_cache` is on, and its step is recorded once and
    replayed.
    """

    retire: bool = True
    stop: bool = True
    drafts: bool = True
    memory: bool = True
    rows: bool = True
    lower_layers: bool = True
    prefix: bool = True
    static_cache: bool = False
    graphs: bool = False

    @classmethod
    def only(cls, names: Iterable[str]) -> "Shortcuts":
        """Return the named shortcuts and no others; raises `UserError` for a name that is not one."""
        known, wanted = [f.name for f in fields(cls)], list(names)
        for name in wanted:
            if name not in known:
                raise unknown_name("shortcut", name, known)
        return cls(**{name: name in wanted for name in known})


NONE = Shortcuts.only(())
"""Plain decoding in batches."""
