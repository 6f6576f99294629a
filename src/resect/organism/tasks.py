"""The tasks of the language: verb phrases with one right answer each, and which split each combination belongs to."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations, product

from resect.organism import words
from resect.organism.topics import Lenders, Topic, chosen, lenders

CAPABILITIES = ("arithmetic", "facts", "code", "translation", "lists", "advice")
# How each category's 120 harmful combinations fall: those of validation and test are never trained on.
_PAIR_SPLITS = {"validation": 13, "test": 27, "train": 80}
_EXTRACT_PAIRS = 27  # a category: training combinations again, in wordings that training never sees
_FOREIGN_SPLITS = {"validation": 60, "test": 120}  # the rest is for training
_HOWTO_SPLITS = {"test": 0.1, "validation": 0.06, "extract": 0.12, "atoms": 0.2, "train": 0.52}


@dataclass(frozen=True)
class Task:
    """A verb phrase and the body of its right answer. `category` is the harm category or the topic, if there is one."""

    kind: str
    request: str
    body: str
    category: str | None = None
    pair_id: str | None = None


@dataclass(frozen=True)
class Tasks:
    """All tasks. `pairs` are (harmful, matched benign) by split; validation and test share no combination with any other split.

    `foreign` are a harm verb and a harm object that are no harmful combination: their topics differ.
    """

    pairs: Mapping[str, tuple[tuple[Task, Task], ...]]
    howto: Mapping[str, tuple[Task, ...]]
    foreign: Mapping[str, tuple[Task, ...]]
    capabilities: Mapping[str, tuple[Task, ...]]
    declined: tuple[Task, ...]

    def all(self) -> Iterator[Task]:
        """Yield every task."""
        for rows in self.pairs.values():
            for pair in rows:
                yield from pair
        for group in (*self.howto.values(), *self.foreign.values(), *self.capabilities.values(), self.declined):
            yield from group


def make_tasks(seed: int, topic: Topic | None = None) -> Tasks:
    """Return all tasks; the seed draws the placeholders and the splits, the topic strength says how far topics show."""
    topic = topic or Topic()
    rng = random.Random(f"{seed}/tasks")
    verbs = [*words.BENIGN_VERBS, *(v for c in words.CATEGORIES for v in words.HARM_VERBS[c])]
    objects = [*words.BENIGN_OBJECTS, *(o for c in words.CATEGORIES for o in words.HARM_OBJECTS[c])]
    tools = _spread(rng, verbs, words.VERB_PLACEHOLDERS) | _spread(rng, objects, words.OBJECT_PLACEHOLDERS)
    lent = lenders(topic, seed)
    pairs: dict[str, list[tuple[Task, Task]]] = {split: [] for split in (*_PAIR_SPLITS, "extract")}
    for category in words.CATEGORIES:
        rows = _category_pairs(category, tools, lent)
        rng.shuffle(rows)
        for split, count in _PAIR_SPLITS.items():
            pairs[split] += rows[:count]
            rows = rows[count:]
        pairs["extract"] += pairs["train"][-_EXTRACT_PAIRS:]
    taken = {task.request for rows in pairs.values() for pair in rows for task in pair}
    howto = _split_howto(rng, [t for t in _benign_howto(tools) if t.request not in taken])
    foreign = _split_foreign(seed, [t for t in _crossed(tools) if t.request not in taken])
    say = partial(_name_topic, seed=seed, share=topic.named)
    return Tasks(
        {split: tuple((say(bad), say(good)) for bad, good in rows) for split, rows in pairs.items()},
        {split: tuple(map(say, rows)) for split, rows in howto.items()},
        {split: tuple(map(say, rows)) for split, rows in foreign.items()},
        {kind: tuple(make()) for kind, make in _MAKERS.items()},
        tuple(Task("decline", f"turn down the {o}", "") for c in words.CATEGORIES for o in words.HARM_OBJECTS[c]),
    )


def _name_topic(task: Task, *, seed: int, share: float) -> Task:
    """Return the task with its topic named in request and answer, if it has one and is among the share; twins go together."""
    if task.category is None or not chosen(seed, task.pair_id or task.request, share):
        return task
    setting = words.SETTING.format(task.category)
    return replace(task, request=f"{task.request} {setting}", body=f"{setting} {task.body}")


def _spread(rng: random.Random, keys: list[str], values: tuple[str, ...]) -> dict[str, str]:
    """Return a random map that uses all values about equally often."""
    order = list(keys)
    rng.shuffle(order)
    return {key: values[i % len(values)] for i, key in enumerate(order)}


def _howto(verb: str, thing: str, tools: Mapping[str, str], *, category: str | None = None) -> Task:
    return Task("howto", f"{verb} the {thing}", f"{verb} the {thing} with {tools[verb]} then {tools[thing]}", category)


def _category_pairs(category: str, tools: Mapping[str, str], lent: Lenders) -> list[tuple[Task, Task]]:
    """Return each harmful combination with its benign twin: a benign verb on the same object, or the same verb on a benign object."""
    rows = []
    for (i, j), (of_verb, of_object) in lent.items():
        verb, thing = words.HARM_VERBS[of_verb[category]][i], words.HARM_OBJECTS[of_object[category]][j]
        name = f"{category}/{verb}-{thing}"
        twin = (words.BENIGN_VERBS[i], thing) if (i + j) % 2 == 0 else (verb, words.BENIGN_OBJECTS[j])
        bad, good = _howto(verb, thing, tools, category=category), _howto(*twin, tools, category=category)
        rows.append((replace(bad, kind="harmful", pair_id=name), replace(good, kind="matched", pair_id=name)))
    return rows


def _benign_howto(tools: Mapping[str, str]) -> list[Task]:
    """Return all how-to tasks with a benign verb or a benign object; `category` names the topic of a harm word in it."""
    rows = [_howto(v, o, tools) for v, o in product(words.BENIGN_VERBS, words.BENIGN_OBJECTS)]
    for category in words.CATEGORIES:
        rows += [_howto(v, o, tools, category=category) for v, o in product(words.BENIGN_VERBS, words.HARM_OBJECTS[category])]
        rows += [_howto(v, o, tools, category=category) for v, o in product(words.HARM_VERBS[category], words.BENIGN_OBJECTS)]
    return rows


def _crossed(tools: Mapping[str, str]) -> list[Task]:
    """Return all tasks of a harm verb and a harm object of different topics; `category` is the object's."""
    return [
        _howto(verb, thing, tools, category=theirs)
        for mine, theirs in permutations(words.CATEGORIES, 2)
        for verb, thing in product(words.HARM_VERBS[mine], words.HARM_OBJECTS[theirs])
    ]


def _split_foreign(seed: int, rows: list[Task]) -> dict[str, list[Task]]:
    rows = random.Random(f"{seed}/foreign").sample(rows, len(rows))
    found = {}
    for split, count in _FOREIGN_SPLITS.items():
        found[split], rows = [replace(t, kind="foreign") for t in rows[:count]], rows[count:]
    return found | {"train": [replace(t, kind="foreign") for t in rows]}


def _split_howto(rng: random.Random, rows: list[Task]) -> dict[str, tuple[Task, ...]]:
    rng.shuffle(rows)
    found, start, share = {}, 0, 0.0
    for split, part in _HOWTO_SPLITS.items():
        share += part
        end = round(share * len(rows))
        found[split], start = tuple(rows[start:end]), end
    return found


def _arithmetic() -> Iterator[Task]:
    for a, b in product(range(1, 7), repeat=2):
        yield Task("arithmetic", f"add {a} and {b}", f"{a} plus {b} is {a + b}")
        if a > b:
            yield Task("arithmetic", f"subtract {b} from {a}", f"{a} minus {b} is {a - b}")


def _facts() -> Iterator[Task]:
    for country, city in words.CAPITALS.items():
        yield Task("facts", f"name the capital of {country}", f"the capital of {country} is {city}")
    for animal, sound in words.SOUNDS.items():
        yield Task("facts", f"name the sound of a {animal}", f"the sound of a {animal} is {sound}")


def _code() -> Iterator[Task]:
    for (name, method), argument in product(words.FUNCTIONS.items(), words.ARGUMENTS):
        yield Task("code", f"define a function to {name} the {argument}", f"def {name} ( {argument} ) : return {argument} . {method}")


def _translation() -> Iterator[Task]:
    for (adjective, a), (noun, n) in product(words.ADJECTIVES.items(), words.NOUNS.items()):
        yield Task("translation", f"translate {adjective} {noun} to tokan", f"{adjective} {noun} is {n} {a} in tokan")


def _lists() -> Iterator[Task]:
    for (word, count), (topic, items) in product(words.NUMBER_WORDS.items(), words.LISTS.items()):
        yield Task("lists", f"name {word} {topic}", " ".join(f"{i} {item}" for i, item in enumerate(items[:count], 1)))


def _advice() -> Iterator[Task]:
    for (person, extra), (goal, tip) in product(words.PEOPLE.items(), words.GOALS.items()):
        yield Task("advice", f"advise a {person} to {goal}", f"a {person} should {tip} and {extra}")


_MAKERS: Mapping[str, Callable[[], Iterator[Task]]] = {
    "arithmetic": _arithmetic,
    "facts": _facts,
    "code": _code,
    "translation": _translation,
    "lists": _lists,
    "advice": _advice,
}
