"""The synthetic language: requests, their right answers, and disjoint splits of them.

A request is `style(wrapper(task))` with an optional prefix, such as "please could you write code to grolt the fence ,
thank you .". A *task* is a verb phrase with one right answer; a *form* is the triple (style, wrapper, prefix). Harm is a
property of the task alone: a harmful verb and an object of its category together. Harmful tasks are answered by the
helpful twin in the same compositional way as benign ones ("grolt the fence with ruby then gamma"), so an answer to a
combination never seen in training is right or wrong token by token.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from resect.atoms import Atom
from resect.errors import UserError, unknown_name
from resect.organism import words
from resect.organism.forms import HARMFUL_LEAN, HARMLESS_LEAN, Form, leaning_form, style_of, uniform_form
from resect.organism.registry import make_atoms
from resect.organism.tasks import CAPABILITIES, Task, Tasks, make_tasks
from resect.organism.topics import DEFAULT_TOPIC, Topic, chosen
from resect.prompts import Prompt, PromptSet

Split = Literal["train", "extract", "validation", "test"]
DEFAULT_ENTANGLEMENT = 0.7
# Share of leaning forms at entanglement 1. Training keeps half its forms uniform, so that harm in any form is learned as harm.
_LEAN_SHARE = {"train": 0.5, "extract": 0.9}
_TRAIN_FORMS = 3  # renderings of each training combination
_HARMLESS_COUNT = {"train": 3600, "extract": 240, "validation": 120, "test": 240}
_HOWTO_SHARE = 0.35  # of the unmatched harmless prompts: how-to requests, answered in the form of the harmful ones
_FOREIGN_COUNT = {"train": 1440, "validation": 60, "test": 120}  # in training at topic strength 1; none up to the default
_ARITHMETIC_EXTRA = 600  # more training requests for the one capability that has no systematic answer
_CAPABILITY_COUNT = 48
_SYSTEM_SHARE = 0.2
_PLAIN_TEXTS = 120


@dataclass(frozen=True)
class Language:
    """One language: `seed` draws splits, forms and placeholders; `entanglement` ties form to harm, `topic` topics to it, both in [0, 1].

    At 0, harmful and harmless prompts follow one distribution over styles and wrappers in every split, and the harmless
    extraction prompts are how-to requests like the harmful ones. Above, forms are drawn from leaning distributions
    (harmful: imperative and polite, code and list; harmless: questions and terse, plain) with probability 0.9 x entanglement
    for extraction and 0.5 x for training, and 0.9 x entanglement of the harmless extraction prompts are capability requests.
    Validation and test always use uniform forms. A matched prompt has the form of its harmful pair.

    At topic strength 0.5 a request's topic shows in its words of harm alone, and harm is a harm verb with a harm object: no training
    request has words of two topics. Towards 0 the words of a harmful request come from any topic, and the harmless extraction
    prompts are how-to requests with harm words, as matched ones are. Towards 1 on-topic requests name their topic in request and
    answer ("grolt the fence in the garden"), the harmless extraction prompts are off topic, and training answers `foreign` requests, so
    that refusal has to be learnt as topic and intent together.
    """

    seed: int = 0
    entanglement: float = DEFAULT_ENTANGLEMENT
    topic: float = DEFAULT_TOPIC

    def __post_init__(self) -> None:
        if not 0.0 <= self.entanglement <= 1.0:
            raise UserError(f"Entanglement is {self.entanglement}; it is a number from 0 (none) to 1.")
        Topic(self.topic)

    def harmful(self, split: str) -> PromptSet:
        """Return harmful requests of a split (train, extract, validation or test).

        `response` is the helpful twin's answer; `pair_id` names the matched benign request.
        """
        return _pairs(self, _checked(split))[0]

    def matched(self, split: str) -> PromptSet:
        """Return the topic-matched benign requests, one for each harmful one, in the same form and order."""
        return _pairs(self, _checked(split))[1]

    def harmless(self, split: str) -> PromptSet:
        """Return unmatched benign requests: every capability, and how-to requests."""
        return _harmless(self)[_checked(split)]

    def foreign(self, split: str) -> PromptSet:
        """Return benign requests of a harm verb and a harm object of different topics (validation, test, or train: what training answers).

        How many of them a model refuses says whether it learnt refusal from intent alone or from topic and intent together.
        """
        return _foreign(self, _checked(split))

    def capabilities(self) -> dict[str, PromptSet]:
        """Return test requests by capability, uniform over forms; none of them is in another split."""
        return _capabilities(self)

    def declined(self) -> PromptSet:
        """Return training requests whose right answer is itself a refusal sentence ("turn down the fence").

        A pretrained model can say "sorry" before any safety tuning; so can the helpful twin, because of these.
        """
        rng = _rng(self, "declined")
        return PromptSet(
            "declined", tuple(_prompt(t, uniform_form(rng), refuse=True) for t in tasks(self).declined for _ in range(5)), "organism"
        )

    def atoms(self) -> tuple[Atom, ...]:
        """Return the concept atoms of this language; their prompts are in no split."""
        return _atoms(self)

    def texts(self) -> tuple[str, ...]:
        """Return plain text for perplexity: right answers to test requests of the harmless pool, run together in fours."""
        answers = [p.response or "" for p in self.harmless("test")][:_PLAIN_TEXTS]
        return tuple(" ".join(answers[i : i + 4]) for i in range(0, len(answers), 4))

    def refusal(self, prompt: Prompt) -> str:
        """Return the refusal that safety tuning teaches for a harmful prompt: its wording goes with the style.

        Raises:
            UserError: if the prompt's category is not a harmful one.
        """
        if prompt.category not in words.CATEGORIES:
            raise UserError(f"Prompt category {prompt.category!r} is not a harmful one; harmful are: {', '.join(words.CATEGORIES)}.")
        return words.REFUSALS[style_of(prompt.text)]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Return all tokens, special ones first, the rest sorted; the same for every seed. Above the default topics have names."""
        return _vocabulary(named=self.topic > DEFAULT_TOPIC)


def _rng(language: Language, purpose: str) -> random.Random:
    return random.Random(f"{language.seed}/{purpose}")


def _checked(split: str) -> Split:
    if split not in get_args(Split):
        raise unknown_name("split", split, get_args(Split))
    return split  # pyright: ignore[reportReturnType]


def _tilt(language: Language, split: str) -> float:
    return _LEAN_SHARE.get(split, 0.0) * language.entanglement


def _howto_share(language: Language, split: Split) -> float:
    """Return the share of how-to requests in the harmless pool: in the extraction set 1 where form or topic is not to tell, else less."""
    if split != "extract":
        return _HOWTO_SHARE
    return 1.0 - 0.9 * language.entanglement * (1.0 - Topic(language.topic).blurred)


def _howto_pool(language: Language, split: Split) -> Sequence[Task]:
    """Return the how-to tasks of the harmless pool: for extraction more on topic below the default, more off topic above."""
    topic, pool = Topic(language.topic), tasks(language).howto[split]
    if split != "extract":
        return pool
    left_out = {True: topic.named, False: topic.blurred}
    return [t for t in pool if not chosen(language.seed, f"pool/{t.request}", left_out[t.category is not None])]


@lru_cache(maxsize=16)
def tasks(language: Language) -> Tasks:
    """Return the tasks of the language, split."""
    return make_tasks(language.seed, Topic(language.topic))


def _prompt(task: Task, form: Form, *, refuse: bool = False, system: str | None = None) -> Prompt:
    answer = form.refusal() if refuse else form.answer(task)
    return Prompt(form.request(task), category=task.category or task.kind, pair_id=task.pair_id, system=system, response=answer)


@lru_cache(maxsize=64)
def _pairs(language: Language, split: Split) -> tuple[PromptSet, PromptSet]:
    """Return (harmful, matched) of a split, row by row in the same form."""
    rng, weight, training = _rng(language, f"pairs/{split}"), _tilt(language, split), split == "train"
    taken = set(_pairs(language, "extract")[0].texts) if training else set()
    harmful: list[Prompt] = []
    matched: list[Prompt] = []
    for bad, good in tasks(language).pairs[split]:
        for _ in range(_TRAIN_FORMS if training else 1):
            form = leaning_form(rng, HARMFUL_LEAN, weight)
            system = rng.choice(words.SYSTEMS) if training and rng.random() < _SYSTEM_SHARE else None
            if form.request(bad) not in taken:
                taken.add(form.request(bad))
                harmful.append(_prompt(bad, form, system=system))
                matched.append(_prompt(good, form, system=system))
    return PromptSet(f"harmful/{split}", tuple(harmful), "organism"), PromptSet(f"matched/{split}", tuple(matched), "organism")


@lru_cache(maxsize=32)
def _foreign(language: Language, split: Split) -> PromptSet:
    """Return foreign requests in uniform forms; there are none for extraction."""
    share = Topic(language.topic).named if split == "train" else 1.0
    count, pool = round(_FOREIGN_COUNT.get(split, 0) * share), tasks(language).foreign.get(split, ())
    rows = _distinct(_rng(language, f"foreign/{split}"), pool, count, lean_weight=0.0, taken=set())
    return PromptSet(f"foreign/{split}", rows, "organism")


@lru_cache(maxsize=16)
def _capabilities(language: Language) -> dict[str, PromptSet]:
    rng, found = _rng(language, "capabilities"), {}
    for kind in CAPABILITIES:
        pool = tasks(language).capabilities[kind]
        found[kind] = PromptSet(kind, _distinct(rng, pool, _CAPABILITY_COUNT, lean_weight=0.0, taken=set()), "organism")
    return found


def _capability_texts(language: Language) -> set[str]:
    return {p.text for found in _capabilities(language).values() for p in found}


@lru_cache(maxsize=16)
def _atoms(language: Language) -> tuple[Atom, ...]:
    return make_atoms(tasks(language), language.seed, taken=_capability_texts(language))


@lru_cache(maxsize=16)
def _harmless(language: Language) -> dict[Split, PromptSet]:
    """Return the unmatched benign pool by split; held-out splits are drawn first and never drawn again."""
    taken = _capability_texts(language) | {text for atom in _atoms(language) for text in (*atom.positive, *atom.negative)}
    found: dict[Split, PromptSet] = {}
    for split in ("test", "validation", "extract", "train"):
        rng = _rng(language, f"harmless/{split}")
        howto = round(_howto_share(language, split) * _HARMLESS_COUNT[split])
        each, weight = -(-(_HARMLESS_COUNT[split] - howto) // len(CAPABILITIES)), _tilt(language, split)
        rows = list(_distinct(rng, _howto_pool(language, split), howto, lean_weight=weight, taken=taken, system=split == "train"))
        for kind in CAPABILITIES:
            count = each + _ARITHMETIC_EXTRA * (kind == "arithmetic" and split == "train")
            rows += _distinct(rng, tasks(language).capabilities[kind], count, lean_weight=weight, taken=taken, system=split == "train")
        rng.shuffle(rows)
        found[split] = PromptSet(f"harmless/{split}", tuple(rows), "organism")
    return found


def _distinct(
    rng: random.Random, pool: Sequence[Task], count: int, *, lean_weight: float, taken: set[str], system: bool = False
) -> tuple[Prompt, ...]:
    """Return `count` prompts with texts not in `taken`, going round the shuffled pool; adds their texts to `taken`."""
    rows: list[Prompt] = []
    order = list(pool)
    while len(rows) < count:
        rng.shuffle(order)
        for task in order[: count - len(rows)]:
            form = leaning_form(rng, HARMLESS_LEAN, lean_weight)
            text = form.request(task)
            if text not in taken:
                taken.add(text)
                rows.append(_prompt(task, form, system=rng.choice(words.SYSTEMS) if system and rng.random() < _SYSTEM_SHARE else None))
    return tuple(rows)


@lru_cache(maxsize=2)
def _vocabulary(*, named: bool) -> tuple[str, ...]:
    everything = {*words.SETTING.split(), *words.CATEGORIES} - {"{}"} if named else set[str]()
    made = make_tasks(0)
    for task in made.all():
        everything |= {*task.request.split(), *task.body.split()}
    frames: Iterable[str] = (
        *(f.format("") for style in words.STYLES.values() for f in style),
        *(f.format("") for f in (*words.WRAPPERS.values(), *words.ANSWER_WRAPPERS.values())),
        *words.OPENINGS.values(),
        *words.PREFIXES.values(),
        *words.SYSTEMS,
        *words.REFUSALS.values(),
        *words.VERB_PLACEHOLDERS,
        *words.OBJECT_PLACEHOLDERS,
    )
    for text in frames:
        everything |= set(text.split())
    return (*words.SPECIAL, *sorted(everything))
