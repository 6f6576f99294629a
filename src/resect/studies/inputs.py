"""What a study works on: the model, three disjoint splits a side, atoms, capability questions, plain text, and a twin if there is one."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from resect.atoms import Atom
from resect.config import SRAConfig
from resect.errors import UserError, unknown_name
from resect.models.chat import chat_template
from resect.models.load import ChatModel
from resect.organism.shipped import Organism
from resect.prompts import PromptSet, check_disjoint, near_duplicates, split_by_hash
from resect.prompts.splits import normal

Part = Literal["extract", "validation", "test"]
SHARES = {"extract": 0.5, "validation": 0.2, "test": 0.3}
"""Shares of a prompt file that build directions, choose settings and score results."""
FEWEST = 8
"""Fewest prompts a split: below this no rate or mean says anything."""


@dataclass(frozen=True)
class Split:
    """One side of the contrast, in three disjoint parts."""

    extract: PromptSet
    validation: PromptSet
    test: PromptSet

    def items(self) -> tuple[tuple[str, PromptSet], ...]:
        """The parts with their names."""
        return (("extract", self.extract), ("validation", self.validation), ("test", self.test))


@dataclass(frozen=True, eq=False)
class StudyInputs:
    """Everything that a study reads; made by `from_prompts` or `from_organism`.

    `questions` are capability prompts with reference answers, `texts` plain text for perplexity, `twin` the helpful-only
    model that says what ablation should restore (organisms only).
    """

    model: ChatModel
    harmful: Split
    harmless: Split
    atoms: tuple[Atom, ...]
    questions: Mapping[str, PromptSet]
    texts: tuple[str, ...]
    twin: ChatModel | None = None

    def __post_init__(self) -> None:
        sides = (("harmful", self.harmful), ("harmless", self.harmless))
        check_disjoint({f"{side}/{part}": prompts for side, split in sides for part, prompts in split.items()})
        for side, split in sides:
            for part, prompts in split.items():
                if len(prompts) < FEWEST:
                    raise UserError(f"Only {len(prompts)} {side} prompts fall to {part}; at least {FEWEST} are needed, give a larger file.")
        taught = {f"{side}/{part}": p for side, split in sides for part, p in split.items() if part != "test"}
        for name, prompts in self.questions.items():
            for other, used in taught.items():
                check_disjoint({f"questions/{name}": prompts, other: used})
        _check_atoms_apart(self.atoms, dict(self.harmful.items()) | {f"harmless {k}": v for k, v in self.harmless.items()})

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model, its tokenizer and template, and every prompt: what makes two runs the same run."""
        tokenizer = self.model.tokenizer
        parts = [
            self.model.fingerprint,
            chat_template(tokenizer),
            str(sorted(tokenizer.get_vocab().items())),
            *(p.fingerprint for split in (self.harmful, self.harmless) for _, p in split.items()),
        ]
        parts += [f"{a.name}/{a.role}/{a.positive}/{a.negative}" for a in self.atoms]
        parts += [f"{name}/{prompts.fingerprint}" for name, prompts in sorted(self.questions.items())]
        parts += [*self.texts, self.twin.fingerprint if self.twin else ""]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def from_prompts(
    model: ChatModel,
    *,
    harmful: PromptSet,
    harmless: PromptSet,
    atoms: tuple[Atom, ...],
    config: SRAConfig,
    questions: Mapping[str, PromptSet] | None = None,
    texts: tuple[str, ...] = (),
) -> StudyInputs:
    """Return the inputs made from two prompt files; a prompt that stands on both sides is an error, and named by its hash."""
    check_disjoint({"harmful": harmful, "harmless": harmless})
    return StudyInputs(
        model=model,
        harmful=_split(harmful, config),
        harmless=_split(harmless, config),
        atoms=atoms,
        questions={name: _answered(name, prompts).first(config.capability_prompts) for name, prompts in (questions or {}).items()},
        texts=texts,
    )


def from_organism(organism: Organism, *, config: SRAConfig) -> StudyInputs:
    """Return the organism's own prompts, atoms and twin; the harmless side is unmatched for extraction and both kinds after it."""
    language = organism.language

    def benign(part: Part) -> PromptSet:
        prompts = language.harmless(part).prompts + language.matched(part).prompts
        return _shuffled(PromptSet(f"harmless/{part}", prompts, "organism"))

    sizes = _sizes(config)
    harmful = {part: _shuffled(language.harmful(part)).first(n) for part, n in sizes.items()}
    harmless: dict[Part, PromptSet] = {"extract": language.harmless("extract"), "validation": benign("validation"), "test": benign("test")}
    return StudyInputs(
        model=organism.aligned(),
        harmful=Split(**harmful),
        harmless=Split(**{part: prompts.first(sizes[part]) for part, prompts in harmless.items()}),
        atoms=language.atoms(),
        questions={name: prompts.first(config.capability_prompts) for name, prompts in language.capabilities().items()},
        texts=language.texts(),
        twin=organism.helpful(),
    )


def gamma_atom(inputs: StudyInputs, config: SRAConfig) -> str:
    """Return the name of the atom that sets the strength; raises `UserError` for a name that no atom has."""
    names = [a.name for a in inputs.atoms]
    if config.gamma_atom is not None:
        if config.gamma_atom not in names:
            raise unknown_name("gamma atom", config.gamma_atom, names)
        return config.gamma_atom
    targets = [a.name for a in inputs.atoms if not a.kept]
    if not targets:
        raise UserError("The energy rule needs a target atom and the registry has none; add one, or name gamma_atom.")
    return "deception" if "deception" in targets else targets[0]


def _sizes(config: SRAConfig) -> dict[Part, int]:
    return {"extract": config.extract_prompts, "validation": config.validation_prompts, "test": config.test_prompts}


def _split(prompts: PromptSet, config: SRAConfig) -> Split:
    parts = split_by_hash(prompts, SHARES, seed=config.seed)
    return Split(**{name: _shuffled(parts[name]).first(n) for name, n in _sizes(config).items()})


def _shuffled(prompts: PromptSet) -> PromptSet:
    """Return the prompts in hash order: sets are often sorted by category, and the first n should be a fair sample."""
    return replace(prompts, prompts=tuple(sorted(prompts.prompts, key=lambda p: p.key)))


def _answered(name: str, prompts: PromptSet) -> PromptSet:
    answered = prompts.where([bool(p.response) for p in prompts])
    if not len(answered):
        raise UserError(f"Question file {name!r} has no reference answers; perplexity needs a response (or answer, output) column.")
    return answered


def _check_atoms_apart(atoms: tuple[Atom, ...], sets: Mapping[str, PromptSet]) -> None:
    texts = {normal(text): atom.name for atom in atoms for text in (*atom.positive, *atom.negative)}
    for name, prompts in sets.items():
        shared = next((p for p in prompts if normal(p.text) in texts), None)
        if shared is not None:
            atom = texts[normal(shared.text)]
            raise UserError(f"Prompt {shared.key} stands in atom {atom!r} and in the {name} prompts; they must be apart, drop it from one.")


def near_twins(inputs: StudyInputs) -> int:
    """Return how many near-duplicate pairs cross two splits: they weaken the split, so the report counts them."""
    return sum(
        len(near_duplicates({a: first, b: second}))
        for split in (inputs.harmful, inputs.harmless)
        for (a, first), (b, second) in combinations(split.items(), 2)
    )
