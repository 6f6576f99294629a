"""The two kinds of failure: a `UserError` is one sentence to the user, anything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; the message says what was wrong, what was found, what is allowed, what to do."""


def unknown_name(kind: str, got: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name outside a closed list, with the nearest valid one.

    >>> str(unknown_name("arm", "sro", ["sra", "standard"]))
    "Unknown arm 'sro'; did you mean 'sra'? Allowed: sra, standard."
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"Unknown {kind} {got!r}{hint} Allowed: {', '.join(names)}.")


def missing_extra(package: str, extra: str) -> UserError:
    """Return the error for an optional package that is not installed."""
    return UserError(f"This needs the optional package {package!r}, which is not installed; run: pip install 'resect[{extra}]'.")
