"""Degenerate text: nothing at all, one thing again and again, or a loop. Thresholds are stated here and nowhere else."""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

SHORTEST = 12  # units below which repetition proves nothing ("no, no, no")
MOST_COMMON_SHARE = 0.6  # one unit makes up this share of the text
ENTROPY_FROM = 32  # units from which the bigram entropy is judged
ENTROPY_SHARE = 0.5  # of the entropy of bigrams that are all different
LOOP_TIMES = 3  # a tail loop repeats at least so often …
LOOP_SHARE = 0.5  # … and covers at least this share of the text
LONG_WORD = 30  # letters from which a word is itself looked at for a loop ("hahaha…")
EMPTY, ONLY_MARKS = "empty", "punctuation only"
_OTHER_MARKS = "`\ufffc\ufffd"  # a code fence, and what stands for an object or for broken bytes


def degeneracy(units: Sequence[str]) -> str | None:
    """Return why a text, given as its words and marks, is degenerate, None if it is not.

    Empty; punctuation only; one unit making up 60 % or more; H(bigrams) / log2(number of bigrams) below 0.5, from 32 units on; a loop: the
    last p units repeated at least three times at the end, over at least half of the text and 12 units; a word of 30 letters or
    more that is such a loop of letters. Repetition of units counts from 12 units on.
    """
    n = len(units)
    if n == 0:
        return EMPTY
    if all(map(_is_mark, units)):
        return ONLY_MARKS
    if any(len(unit) >= LONG_WORD and loop_length(unit) >= LOOP_SHARE * len(unit) for unit in units):
        return "a word that loops"
    if n < SHORTEST:
        return None
    if Counter(units).most_common(1)[0][1] >= MOST_COMMON_SHARE * n:
        return "one word again and again"
    if n >= ENTROPY_FROM and bigram_entropy(units) < ENTROPY_SHARE:
        return "hardly any variety"
    while _is_mark(units[-1]):  # a code fence or a full stop after the loop
        units = units[:-1]
    return "a loop at the end" if loop_length(units) >= max(SHORTEST, LOOP_SHARE * n) else None


def _is_mark(unit: str) -> bool:
    return all(unicodedata.category(c).startswith("P") or c in _OTHER_MARKS for c in unit)


def bigram_entropy(units: Sequence[str]) -> float:
    """Return the entropy of the bigrams as a share of its maximum log2(n − 1): 1 if all differ, 0 if all are equal."""
    total = len(units) - 1
    if total < 2:
        return 1.0
    counts = Counter(pairwise(units)).values()
    return -sum(c / total * math.log2(c / total) for c in counts) / math.log2(total)


def loop_length(units: Sequence[str]) -> int:
    """Return how many units at the end are a block repeated at least three times, 0 if there is no such block."""
    n, best = len(units), 0
    for period in range(1, n // LOOP_TIMES + 1):
        run = period
        while run < n and units[n - 1 - run] == units[n - 1 - run + period]:
            run += 1
        if run >= LOOP_TIMES * period:
            best = max(best, run)
    return best
