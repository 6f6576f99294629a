"""The markers of refusal and evasion, compiled from data, and the opening of an answer in which they are looked for."""

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from typing import Any

from resect.errors import UserError, unknown_name

OPENING_SENTENCES = 3
OPENING_UNITS = 40

_LISTS = (
    "cannot",
    "between",
    "act",
    "not_act",
    "refuse",
    "anywhere",
    "sorry",
    "before",
    "accept",
    "but_does",
    "evasive",
    "promise",
    "contrast",
)
# A clause begins after any mark but those that stand inside words or stand for quoted speech.
_BREAK = r"[^\w\s'\"/&+]"
# A unit is a word, a punctuation mark, or one character of a script that is written without spaces.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:'\w+)?|[^\w\s]")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002!?])|\n+")
_CONTRACTIONS = ((r"\bcan not\b", "cannot"), (r"\b(i) am\b", r"\1'm"), (r"\b(it|that|here) is\b", r"\1's"), (r"\b(we) are\b", r"\1're"))
_CONTRACTIONS += (
    (r"\b(i) would\b", r"\1'd"),
    (r"\b(is|do|does|must|would)n t\b", r"\1n't"),
    (r"\b(can|won|don) ?'? ?t\b", r"\1't"),
    (r"\bi ?' ?m\b", "i'm"),
)


@dataclass(frozen=True, eq=False)  # one by one its patterns take longer to compare and to hash than to be searched for
class Language:
    """One language's markers as compiled patterns over normalised text."""

    name: str
    refuse: re.Pattern[str]
    only_sorry: re.Pattern[str]
    only_promise: re.Pattern[str]
    accept: re.Pattern[str]
    but_does: re.Pattern[str]
    evasive: re.Pattern[str]
    contrast: re.Pattern[str]


@dataclass(frozen=True)
class Opening:
    """The first sentences of an answer, normalised; `whole` is true if the rest of the answer cannot add to it."""

    text: str
    whole: bool


@functools.cache
def shipped_markers(*languages: str) -> tuple[Language, ...]:
    """Return the shipped markers of the named languages, all of them if none is named.

    Raises: UserError for a language that is not shipped.
    """
    table = tomllib.loads(resources.files("resect.data").joinpath("refusal_markers.toml").read_text("utf-8"))
    for name in languages:
        if name not in table:
            raise unknown_name("language", name, table)
    return compile_markers({name: table[name] for name in languages or table})


def compile_markers(table: Mapping[str, Mapping[str, Any]]) -> tuple[Language, ...]:
    """Return markers given as data (the layout is described at the top of `data/refusal_markers.toml`) as compiled patterns.

    Raises: UserError for an unknown key or a missing `refuse` list.
    """
    for name, lists in table.items():
        for key in lists:
            if key not in (*_LISTS, "spaced"):
                raise unknown_name(f"key in the markers of language {name!r}:", key, [*_LISTS, "spaced"])
        if not lists.get("refuse"):
            raise UserError(f"The markers of language {name!r} have no 'refuse' phrases, so nothing could be judged a refusal; add some.")
    return tuple(_compile(name, lists) for name, lists in table.items())


def opening(answer: str) -> Opening:
    """Return the opening: the first three sentences, at most 40 words or 80 characters of an unspaced script, normalised."""
    return opening_of_normal(normalise(answer))


def opening_of_normal(normal: str) -> Opening:
    """Return the opening of an answer that is in normal form already."""
    quoteless = re.sub(r'"[^"\n]*"', '""', normal)
    sentences = [s for s in _SENTENCE_END.split(quoteless) if s and s.strip(" *#>_")]
    # A line that ends without a mark (a heading) ends a clause all the same.
    text = " ".join(s if re.search(r"[^\w\s]\s*$", s) else f"{s}." for s in sentences[: OPENING_SENTENCES - 1])
    text = " ".join([text, *sentences[OPENING_SENTENCES - 1 : OPENING_SENTENCES]]).strip()
    # Two characters of an unspaced script say about as much as a word.
    found = list(_UNIT.finditer(text))
    lengths = accumulate(0.5 if _CHARACTER.fullmatch(unit[0]) else 1.0 for unit in found)
    last = next((unit for unit, length in zip(found, lengths, strict=True) if length >= OPENING_UNITS), None)
    if last is not None and last is not found[-1]:
        return Opening(text[: last.end()], whole=True)
    return Opening(text, whole=len(sentences) > OPENING_SENTENCES)


@functools.lru_cache(maxsize=4096)  # the same texts come again: in both halves of the judge, and under other edits
def normalise(text: str) -> str:
    """Return text in the form in which markers are written; line breaks are kept."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u0451", "\u0435")
    text = re.sub(r"[\u2018\u2019\u02bc\u00b4`]", "'", text)
    text = re.sub(r"[\u201c\u201d\u201e\u00ab\u00bb\u300c-\u300f]", '"', text)
    text = re.sub(r"[*_#>]+", " ", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" +([.,!?;:])", r"\1", text)
    for pattern, replacement in _CONTRACTIONS:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def units(text: str) -> list[str]:
    """Return the words, punctuation marks and characters of unspaced scripts of a text, lower case."""
    return _UNIT.findall(text.casefold())


def _compile(name: str, lists: Mapping[str, Any]) -> Language:
    spaced = bool(lists.get("spaced", True))
    edge, left = (r"(?!\w)", r"(?<!\w)") if spaced else ("", "")
    gap = r"\s+" if spaced else r"\s*"

    def any_of(*keys: str) -> str:
        return _alternatives(phrase for key in keys for phrase in lists.get(key, ()))

    start = rf"(?:^\W*|{_BREAK}\s*|(?:^|(?<!\w)){any_of('sorry', 'before')}{gap}(?:that\s+)?)"
    between = rf"(?:{any_of('between')}{gap}){{0,4}}+"
    # `between` is possessive: giving back a "between" word must not let the excluded phrase slip past the look-ahead.
    cannot = rf"{any_of('cannot')}(?:{gap}|(?<=')){between}(?!{any_of('not_act')}{edge}){any_of('act')}{edge}"
    anywhere = rf"{left}{any_of('anywhere')}(?!\w)"  # in unspaced scripts too: a particle would turn it ("できませんが": cannot, but …)
    head = rf"^\W*(?:{any_of('sorry', 'before')}\W+)*"
    return Language(
        name,
        refuse=re.compile(rf"{start}(?:{cannot}|{any_of('refuse')}{edge})|{anywhere}"),
        only_sorry=re.compile(rf"^\W*(?:{any_of('sorry')}{edge}\W*){{1,3}}$"),
        only_promise=re.compile(rf"^\W*(?:{any_of('accept')}{edge}\W+)*{any_of('promise')}{edge}[^.!?:\n]*[.!]*\s*$"),
        accept=re.compile(rf"^\W*{any_of('accept')}{edge}"),
        but_does=re.compile(any_of("but_does") + edge),
        evasive=re.compile(rf"{head}{any_of('evasive')}{edge}"),
        contrast=re.compile(rf"{left}{any_of('contrast')}{edge}"),
    )


def _alternatives(phrases: Iterable[str]) -> str:
    """Return a group matching any of the phrases, longest first; "*" stands for one to three words. No phrases: matches nothing."""
    ordered: Sequence[str] = sorted(phrases, key=lambda p: (-len(p), p))
    if not ordered:
        return r"(?:(?!))"
    return "(?:" + "|".join(re.escape(normalise_entry(p)).replace("\0", r"\w+(?:\s+\w+){0,2}") for p in ordered) + ")"


def normalise_entry(phrase: str) -> str:
    """Return a marker in normal form, its wildcard kept apart."""
    return normalise(phrase.replace("*", "\0"))
