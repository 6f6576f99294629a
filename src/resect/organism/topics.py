"""Topic strength: how far a harmful request's topic shows on its surface, and how far refusal depends on it."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from resect.errors import UserError
from resect.organism import words

DEFAULT_TOPIC = 0.5

Cell = tuple[int, int]


@dataclass(frozen=True)
class Topic:
    """Topic strength in [0, 1] and what follows from it; at 0.5 a topic shows in the two words of harm, and nowhere else.

    Below, words lose their topic; above, requests name it, unmatched requests avoid it, and refusal is learnt as topic and intent together.
    """

    strength: float = DEFAULT_TOPIC

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise UserError(
                f"Topic strength is {self.strength}; it is a number from 0 (hardly any topic) to 1, and {DEFAULT_TOPIC} is usual."
            )

    @property
    def blurred(self) -> float:
        """Return the share of harmful combinations whose words come from any topic: 1 at strength 0, 0 from 0.5 on."""
        return max(0.0, 1.0 - 2.0 * self.strength)

    @property
    def named(self) -> float:
        """Return the share of on-topic requests that name their topic: 0 up to strength 0.5, 1 at 1."""
        return max(0.0, 2.0 * self.strength - 1.0)


Lenders = Mapping[Cell, tuple[Mapping[str, str], Mapping[str, str]]]


def lenders(topic: Topic, seed: int) -> Lenders:
    """Return, for each (verb, object) place in the lexicons, the topic that lends each topic its verb and its object there.

    A blurred place lends by two random permutations of the topics, the others keep their words: every harm word stays as frequent as it
    was, and no combination occurs twice.
    """
    rng = random.Random(f"{seed}/topic/lenders")
    verbs, objects = (len(next(iter(lexicon.values()))) for lexicon in (words.HARM_VERBS, words.HARM_OBJECTS))
    own = dict(zip(words.CATEGORIES, words.CATEGORIES, strict=True))
    return {
        cell: (_shuffled(rng), _shuffled(rng)) if rng.random() < topic.blurred else (own, own)
        for cell in product(range(verbs), range(objects))
    }


def _shuffled(rng: random.Random) -> dict[str, str]:
    return dict(zip(words.CATEGORIES, rng.sample(words.CATEGORIES, len(words.CATEGORIES)), strict=True))


def chosen(seed: int, key: str, share: float) -> bool:
    """Return whether the item `key` is among the given share of all items; the choice hangs on seed and key alone."""
    return random.Random(f"{seed}/topic/{key}").random() < share
