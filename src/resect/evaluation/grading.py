"""Whether an answer is right: equal to the reference, or a function that does what the reference's function does."""

import re
from collections.abc import Callable, Mapping

from resect.generation import Response

_FUNCTION = re.compile(r"def (?P<name>\w+) ?\( ?(?P<argument>\w+) ?\) ?: return (?P<of>\w+) ?\. ?(?P<method>\w+)")


def exact(response: Response, reference: str) -> bool:
    """Return whether a finished answer, without thoughts, is the reference; spacing apart."""
    return response.finished and response.answer_text.split() == reference.split()


def code(response: Response, reference: str) -> bool:
    """Return whether the one function in the answer does what the reference's does (pass@1 of the organisms' code task).

    Such functions take one argument and return something of it: the name and what is returned must be the same, and returned of the
    function's own argument; the argument's name and the words around do not matter. Nothing is executed.
    """
    wanted = _behaviour(reference)
    return response.finished and wanted is not None and _behaviour(response.answer_text) == wanted


GRADERS: Mapping[str, Callable[[Response, str], bool]] = {"exact": exact, "code": code}
"""Every way of grading, by name."""


def _behaviour(text: str) -> tuple[str, str] | None:
    found = list(_FUNCTION.finditer(text))
    if len(found) != 1 or found[0]["argument"] != found[0]["of"]:
        return None
    return found[0]["name"], found[0]["method"]
