"""Splits that stay put when a file grows, and checks that they do not overlap."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from resect.errors import UserError
from resect.prompts.values import Prompt, PromptSet


@dataclass(frozen=True)
class NearDuplicate:
    """Two prompts of different sets with nearly the same words; prompts are named by their `key`."""

    first_set: str
    first: str
    second_set: str
    second: str
    similarity: float


def split_by_hash(prompts: PromptSet, fractions: Mapping[str, float], *, seed: int = 0) -> dict[str, PromptSet]:
    """Return one set per name of `fractions`, each in the order of the file and about as large as its fraction says.

    A prompt goes by SHA-256 of the seed and its pair id (its text, where it has none), so adding or removing other prompts moves
    nothing, and prompts with one pair id stay together, also across files split with the same seed and fractions.

    Raises:
        UserError: if a fraction is not positive or the fractions do not add up to 1.
    """
    _check_fractions(fractions)
    return _parts(prompts, {_group(prompt): _name_at(fractions, _unit(prompt, seed)) for prompt in prompts}, fractions)


def split_evenly(
    prompts: PromptSet, fractions: Mapping[str, float], *, seed: int = 0, partners: Mapping[str, str] | None = None
) -> dict[str, PromptSet]:
    """Return one set per name of `fractions`, which hold within every category: small categories get their share of every part.

    Within a category prompts are dealt out in the order of `split_by_hash`; those with one pair id stay together. `partners` says for pair
    ids of another file where they went, and theirs go there. Other prompts of a category do move its prompts.

    Raises:
        UserError: if a fraction is not positive or the fractions do not add up to 1.
    """
    _check_fractions(fractions)
    where = {f"pair:{pair}": name for pair, name in (partners or {}).items()}
    groups: dict[str | None, dict[str, Prompt]] = {}
    for prompt in prompts:
        if _group(prompt) not in where:
            groups.setdefault(prompt.category, {}).setdefault(_group(prompt), prompt)
    for group in groups.values():
        dealt = sorted(group, key=lambda name: _unit(group[name], seed))
        for rank, name in enumerate(dealt):
            where.setdefault(name, _name_at(fractions, (rank + 0.5) / len(dealt)))
    return _parts(prompts, where, fractions)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if not fractions or any(not f > 0 for f in fractions.values()) or abs(math.fsum(fractions.values()) - 1) > 1e-6:
        shown = ", ".join(f"{name} {value:g}" for name, value in fractions.items()) or "none"
        raise UserError(f"Split fractions must be positive and add up to 1, got {shown}; change them.")


def _name_at(fractions: Mapping[str, float], place: float) -> str:
    names = list(fractions)
    bounds = [math.fsum(list(fractions.values())[: k + 1]) for k in range(len(names))]
    return next((name for name, bound in zip(names, bounds, strict=True) if place < bound), names[-1])


def _parts(prompts: PromptSet, where: Mapping[str, str], fractions: Mapping[str, float]) -> dict[str, PromptSet]:
    parts: dict[str, list[Prompt]] = {name: [] for name in fractions}
    for prompt in prompts:
        parts[where[_group(prompt)]].append(prompt)
    return {name: replace(prompts, name=f"{prompts.name}/{name}", prompts=tuple(part), dropped=0) for name, part in parts.items()}


def check_disjoint(sets: Mapping[str, PromptSet]) -> None:
    """Check that no text is in two of the sets; letter case and spacing do not count as a difference.

    Raises:
        UserError: naming both sets, how many texts they share and the key of the first.
    """
    texts = {name: {normal(p.text): p for p in prompts} for name, prompts in sets.items()}
    for first, second in combinations(sets, 2):
        shared = [prompt for text, prompt in texts[first].items() if text in texts[second]]
        if shared:
            raise UserError(
                f"Prompt sets {first!r} and {second!r} share {len(shared)} prompts (the first has key {shared[0].key}), and they must be "
                "disjoint; remove the prompts from one of the sets."
            )


def near_duplicates(sets: Mapping[str, PromptSet], *, threshold: float = 0.8) -> tuple[NearDuplicate, ...]:
    """Return the pairs of prompts from different sets whose lower-cased word sets A, B have |A ∩ B| / |A ∪ B| >= threshold.

    Pairs come in the order of the sets and of the prompts in them.

    Raises:
        UserError: for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UserError(f"The near-duplicate threshold must be above 0 and at most 1, got {threshold:g}; 0.8 is usual.")
    items = [(name, prompt, _words(prompt.text)) for name, prompts in sets.items() for prompt in prompts]
    words = [item[2] for item in items]
    groups = [item[0] for item in items]
    found: list[NearDuplicate] = []
    for i, j in sorted(_candidates(words, groups, threshold)):
        shared = len(words[i] & words[j])
        similarity = shared / (len(words[i]) + len(words[j]) - shared)
        if similarity >= threshold:
            found.append(NearDuplicate(groups[i], items[i][1].key, groups[j], items[j][1].key, similarity))
    return tuple(found)


def _candidates(words: Sequence[frozenset[str]], groups: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs that share one of their rarest words.

    Jaccard >= t needs at least t·|A| shared words, so one of the |A| − ⌈t·|A|⌉ + 1 rarest words of A must be among as many of B.
    """
    frequency = Counter(word for entry in words for word in entry)
    index: dict[str, list[int]] = {}
    for j, entry in enumerate(words):
        ranked = sorted(entry, key=lambda word: (frequency[word], word))
        prefix = ranked[: len(ranked) - math.ceil(threshold * len(ranked) - 1e-9) + 1]
        seen = {i for word in prefix for i in index.get(word, ()) if groups[i] != groups[j]}
        yield from ((i, j) for i in seen)
        for word in prefix:
            index.setdefault(word, []).append(j)


def _unit(prompt: Prompt, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the prompt's group only."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{_group(prompt)}".encode()).digest()[:7]) / 2**56


def _group(prompt: Prompt) -> str:
    """What stays together: the prompts of one pair, else one text."""
    return f"text:{prompt.text}" if prompt.pair_id is None else f"pair:{prompt.pair_id}"


def normal(text: str) -> str:
    """Return the text without case and extra spaces: what counts as the same prompt."""
    return " ".join(text.casefold().split())


def similarity(a: str, b: str) -> float:
    """Return the share of words that two texts have in common (Jaccard index of their lower-cased word sets), 0 without any words."""
    first, second = _words(a), _words(b)
    return len(first & second) / max(1, len(first | second))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
