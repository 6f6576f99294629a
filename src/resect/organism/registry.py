"""The organism's own concept atoms: what its capabilities, styles and topics look like inside, in its language."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from resect.atoms import Atom, Role
from resect.organism import words
from resect.organism.language import Form, tasks, uniform_form
from resect.organism.tasks import CAPABILITIES, Task

if TYPE_CHECKING:
    from resect.organism.language import Language

_SIDE = 32
Pair = tuple[str, str]


@lru_cache(maxsize=16)
def make_atoms(language: "Language") -> tuple[Atom, ...]:
    """Return the registry: shields per capability, confounds per style and prefix, targets for the words of harm.

    A positive prompt and its antagonist share the form and differ in the task (capabilities, harm words), or share the task
    and differ in one part of the form (styles, wrappers, prefixes). No prompt is harmful, and none is in a split.
    """
    from resect.organism.language import _capabilities

    taken = {p.text for found in _capabilities(language).values() for p in found}
    makers = [*_shields(language), *_confounds(language), *_targets(language)]
    return tuple(_atom(language, name, role, draw, taken) for name, role, draw in makers)


def atom_texts(language: "Language") -> set[str]:
    """Return every text that an atom uses."""
    return {text for atom in make_atoms(language) for text in (*atom.positive, *atom.negative)}


Draw = Callable[[random.Random], Pair]
Maker = tuple[str, Role, Draw]


def _atom(language: "Language", name: str, role: Role, draw: Draw, taken: set[str]) -> Atom:
    rng = random.Random(f"{language.seed}/atom/{name}")
    positive: list[str] = []
    negative: list[str] = []
    while len(positive) < _SIDE:
        yes, no = draw(rng)
        if yes != no and yes not in taken and no not in taken:
            taken |= {yes, no}
            positive.append(yes)
            negative.append(no)
    return Atom(name, role, tuple(positive), tuple(negative), f"The organism's {name}.", "resect organism")


def _shields(language: "Language") -> list[Maker]:
    """Capabilities: a task of this kind against a task of another kind, in the same form; wrappers count as code and lists too."""
    made = tasks(language)
    makers: list[Maker] = []
    for kind in CAPABILITIES:
        others = [t for k in CAPABILITIES if k != kind for t in made.capabilities[k]] + list(made.howto["atoms"])
        makers.append((kind, "shield", _by_task(made.capabilities[kind], others)))
    everything = [t for group in made.capabilities.values() for t in group] + list(made.howto["atoms"])
    for wrapper in ("code", "list"):
        makers.append((f"{wrapper}_wrapper", "shield", _by_form(everything, "wrapper", wrapper, ("plain",))))
    makers.append(("howto", "shield", _by_task(made.howto["atoms"], [t for g in made.capabilities.values() for t in g])))
    return makers


def _confounds(language: "Language") -> list[Maker]:
    made = tasks(language)
    everything = [t for group in made.capabilities.values() for t in group] + list(made.howto["atoms"])
    makers: list[Maker] = [
        (style, "confound", _by_form(everything, "style", style, tuple(s for s in words.STYLES if s != style))) for style in words.STYLES
    ]
    for prefix in ("affirmative", "negation", "curiosity"):
        makers.append((prefix, "confound", _by_form(everything, "prefix", prefix, tuple(p for p in words.PREFIXES if p != prefix))))
    return makers


def _targets(language: "Language") -> list[Maker]:
    """The words of harm in benign requests, and uncertainty: reported, never protected."""
    made = tasks(language)
    howto, harm_verbs = made.howto["atoms"], {v for c in words.CATEGORIES for v in words.HARM_VERBS[c]}
    neutral = [t for t in howto if t.category is None]
    with_verb = [t for t in howto if t.request.split()[0] in harm_verbs]
    with_object = [t for t in howto if t.category is not None and t.request.split()[0] not in harm_verbs]
    everything = [t for group in made.capabilities.values() for t in group] + list(howto)
    return [
        ("harm_verb", "target", _by_task(with_verb, neutral)),
        ("harm_object", "target", _by_task(with_object, neutral)),
        ("uncertainty", "target", _by_form(everything, "prefix", "uncertainty", ("none", "affirmative"))),
    ]


def _by_task(yes: Sequence[Task], no: Sequence[Task]) -> Draw:
    def draw(rng: random.Random) -> Pair:
        form = uniform_form(rng)
        return form.request(rng.choice(yes)), form.request(rng.choice(no))

    return draw


def _by_form(pool: Sequence[Task], part: str, value: str, others: tuple[str, ...]) -> Draw:
    def draw(rng: random.Random) -> Pair:
        form, task = uniform_form(rng), rng.choice(pool)
        yes: Form = replace(form, **{part: value})
        no: Form = replace(form, **{part: rng.choice(others)})
        return yes.request(task), no.request(task)

    return draw
