"""When the marker judge's word on refusal is settled, so that the rest of a response need not be decoded.

The judge reads refusal off the opening of an answer. Once the opening is over nothing that follows can change it, but for the last
characters so far: bytes of half a character, a word still being written, white space before a mark, a quotation still open. So the opening
must be over some characters ago, in two readings of different lengths, and no quotation may be open.
"""

import functools
import unicodedata
from collections.abc import Sequence

from resect.evaluation.markers import Language, Opening, normalise, opening_of_normal, shipped_markers
from resect.evaluation.verdicts import refuses
from resect.generation import Response, read
from resect.generation.decoding import Ids, Stop
from resect.models.chat import Rendered
from resect.models.load import ChatModel

# Characters: longer than any tag, contraction or character in the making that the last token may still change.
_MARGIN = 16
# Judging costs about as much as decoding a token of a small model, so it is done every few tokens.
_EVERY = 8


@functools.lru_cache(maxsize=4096)  # the same openings come again under other edits
def settled_refusal(response: Response, *, markers: tuple[Language, ...]) -> bool | None:
    """Return whether the response refuses, whatever tokens follow those it has; None if that is still open.

    True: the marker judge says "refuse" of the response and of every longer one. False: it says so of none of them.
    """
    start = _settled_opening(response.answer_text)
    # "Sorry. Sorry. Sorry." refuses only as a whole answer.
    if start is None or any(language.only_sorry.match(start.text) for language in markers):
        return None
    return any(refuses(start, language, finished=False) for language in markers)


def stop_when_settled(model: ChatModel, *, refusal_only: bool, markers: Sequence[Language] | None = None) -> Stop:
    """Return the rule by which a response may end early with the marker judge's verdict on it unchanged.

    A settled refusal is a settled verdict. With `refusal_only` a response ends too when it is settled that it is no refusal; its verdict is
    then not settled between comply, degenerate and evasive, so only "refuse or not" may be read off it.
    """
    chosen = shipped_markers() if markers is None else tuple(markers)

    def stop(prompt: Rendered, ids: Ids) -> bool:
        if len(ids) % _EVERY:
            return False
        found = settled_refusal(read(model, ids, prompt=prompt), markers=chosen)
        return found is True or (refusal_only and found is False)

    return stop


def _settled_opening(answer: str) -> Opening | None:
    """Return the opening of every answer that begins with this one, None if a longer one may have another."""
    # A mark that combines may be sorted in before characters that stand already.
    if any(unicodedata.combining(c) for c in answer[-2 * _MARGIN :]):
        return None
    normal = normalise(answer[:-_MARGIN])[:-_MARGIN]
    if normal.rpartition("\n")[2].count('"') % 2:
        return None
    now, before = opening_of_normal(normal), opening_of_normal(normal[:-_MARGIN])
    return now if now.whole and before.whole and now.text == before.text else None
