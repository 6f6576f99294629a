"""Degenerate text: nothing at all, one thing again and again, or a loop. Thresholds are stated here and nowhere else."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

SHORTEST = 12  # units below which repetition proves nothing ("no, no, no")
MOST_COMMON_SHARE = 0.6  # one unit makes up this share of the text
ENTROPY_FROM = 32  # units from which the bigram entropy is judged
ENTROPY_SHARE = 0.5  # of the entropy of bigrams that are all different
LOOP_TIMES = 3  # a tail loop repeats at least so often …
LOOP_SHARE = 0.5  # … and covers at least this share of the text


def is_degenerate(units: Sequence[str]) -> bool:
    """Return whether a text, given as its words and marks, is empty, nearly one unit repeated, of low bigram entropy, or ends in a loop.

    Entropy: H(bigrams) / log2(number of bigrams) below 0.5, from 32 units on. Loop: the last p units repeated at least three times at the
    end, over at least half of the text and 12 units.
    """
    n = len(units)
    if n == 0:
        return True
    if n < SHORTEST:
        return False
    if Counter(units).most_common(1)[0][1] >= MOST_COMMON_SHARE * n:
        return True
    return (n >= ENTROPY_FROM and bigram_entropy(units) < ENTROPY_SHARE) or loop_length(units) >= max(SHORTEST, LOOP_SHARE * n)


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
