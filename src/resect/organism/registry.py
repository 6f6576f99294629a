"""The organism's own concept atoms: what its capabilities, styles and topics look like inside, in its language."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from resect.atoms import Atom, Role
from resect.organism import words
from resect.organism.forms import Form, uniform_form
from resect.organism.tasks import CAPABILITIES, Task, Tasks

_SIDE = 32
Pair = tuple[str, str]


def make_atoms(made: Tasks, seed: int, *, taken: set[str]) -> tuple[Atom, ...]:
    """Return the registry: shields per capability, confounds per style and prefix, targets for the words of harm.

    A positive prompt and its antagonist share the form and differ in the task (capabilities, harm words), or share the task
    and differ in one part of the form (styles, wrappers, prefixes). No prompt is harmful, and none is in `taken`.
    """
    used = set(taken)
    makers = [*_shields(made), *_confounds(made), *_targets(made)]
    return tuple(_atom(name, role, draw=draw, rng=random.Random(f"{seed}/atom/{name}"), taken=used) for name, role, draw in makers)


Draw = Callable[[random.Random], Pair]
Maker = tuple[str, Role, Draw]


def _atom(name: str, role: Role, *, draw: Draw, rng: random.Random, taken: set[str]) -> Atom:
    """Return one atom of pairs drawn until each side is full; adds their texts to `taken`."""
    positive: list[str] = []
    negative: list[str] = []
    while len(positive) < _SIDE:
        yes, no = draw(rng)
        if yes != no and yes not in taken and no not in taken:
            taken |= {yes, no}
            positive.append(yes)
            negative.append(no)
    return Atom(name, role, tuple(positive), tuple(negative), f"The organism's {name}.", "resect organism")


def _shields(made: Tasks) -> list[Maker]:
    """Capabilities: a task of this kind against a task of another kind, in the same form; wrappers count as code and lists too."""
    makers: list[Maker] = []
    for kind in CAPABILITIES:
        others = [t for k in CAPABILITIES if k != kind for t in made.capabilities[k]] + _neutral(made)
        makers.append((kind, "shield", _by_task(made.capabilities[kind], others)))
    everything = [t for group in made.capabilities.values() for t in group] + _neutral(made)
    for wrapper in ("code", "list"):
        makers.append((f"{wrapper}_wrapper", "shield", _by_form(everything, "wrapper", value=wrapper, others=("plain",))))
    return makers


def _confounds(made: Tasks) -> list[Maker]:
    everything = [t for group in made.capabilities.values() for t in group] + _neutral(made)
    makers: list[Maker] = [
        (style, "confound", _by_form(everything, "style", value=style, others=tuple(s for s in words.STYLES if s != style)))
        for style in words.STYLES
    ]
    for prefix in ("affirmative", "negation", "curiosity"):
        makers.append(
            (prefix, "confound", _by_form(everything, "prefix", value=prefix, others=tuple(p for p in words.PREFIXES if p != prefix)))
        )
    return makers


def _targets(made: Tasks) -> list[Maker]:
    """What refusal is made of, reported and never protected: words of harm in benign requests, uncertainty, and the how-to answer.

    Refusal takes the place of the how-to answer, so the aligned model's refusal points away from it; protecting it would protect refusal.
    """
    howto, harm_verbs = made.howto["atoms"], {v for c in words.CATEGORIES for v in words.HARM_VERBS[c]}
    neutral = _neutral(made)
    with_verb = [t for t in howto if t.request.split()[0] in harm_verbs]
    with_object = [t for t in howto if t.category is not None and t.request.split()[0] not in harm_verbs]
    skills = [t for group in made.capabilities.values() for t in group]
    return [
        ("howto", "target", _by_task(neutral, skills)),
        ("harm_verb", "target", _by_task(with_verb, neutral)),
        ("harm_object", "target", _by_task(with_object, neutral)),
        ("uncertainty", "target", _by_form([*skills, *neutral], "prefix", value="uncertainty", others=("none", "affirmative"))),
    ]


def _neutral(made: Tasks) -> list[Task]:
    """Return how-to tasks without any word of harm: what cleaning protects must not lean on harm."""
    return [t for t in made.howto["atoms"] if t.category is None]


def _by_task(yes: Sequence[Task], no: Sequence[Task]) -> Draw:
    def draw(rng: random.Random) -> Pair:
        form = uniform_form(rng)
        return form.request(rng.choice(yes)), form.request(rng.choice(no))

    return draw


def _by_form(pool: Sequence[Task], part: str, *, value: str, others: tuple[str, ...]) -> Draw:
    def draw(rng: random.Random) -> Pair:
        form, task = uniform_form(rng), rng.choice(pool)
        yes: Form = replace(form, **{part: value})
        no: Form = replace(form, **{part: rng.choice(others)})
        return yes.request(task), no.request(task)

    return draw
