"""What the contrast study works on: harmful prompts, benign ones on the same topics, and benign ones on any topic."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from resect.config import ContrastConfig
from resect.errors import UserError
from resect.models.load import ChatModel
from resect.organism.shipped import Organism
from resect.prompts import Prompt, PromptSet, check_disjoint, split_evenly
from resect.studies.contrast_categories import predicted
from resect.studies.contrast_topics import check_all_extracted, check_pairs, check_topics, inherited
from resect.studies.inputs import FEWEST, SHARES, Split, StudyInputs


@dataclass(frozen=True, eq=False)
class ContrastInputs:
    """Model and three sides, each in three disjoint parts; `twin` is the helpful-only model (organisms only).

    Of matched and unmatched validation and test prompts there are half as many as of harmful ones: both together are as many. `dropped`
    counts the rows of each file that were left out in reading, `predictions` says how categories were predicted (None if they were not).
    """

    model: ChatModel
    harmful: Split
    matched: Split
    unmatched: Split
    twin: ChatModel | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    predictions: dict[str, Any] | None = None

    @cached_property
    def study(self) -> StudyInputs:
        """The same prompts as two sides, matched ones first on the harmless one; checks that all parts are disjoint and large."""
        harmless = {
            part: PromptSet(f"harmless/{part}", matched.prompts + unmatched.prompts)
            for (part, matched), (_, unmatched) in zip(self.matched.items(), self.unmatched.items(), strict=True)
        }
        return StudyInputs(self.model, self.harmful, Split(**harmless), atoms=(), questions={}, texts=(), twin=self.twin)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that makes two runs the same run."""
        sides = [split.extract.fingerprint for split in (self.matched, self.unmatched)]
        return hashlib.sha256("\n".join([self.study.fingerprint, *sides]).encode()).hexdigest()


def from_sides(model: ChatModel, *, harmful: PromptSet, matched: PromptSet, unmatched: PromptSet, config: ContrastConfig) -> ContrastInputs:
    """Return the inputs made from three prompt files.

    Raises:
        UserError: what `split_sides` raises, or categories that cannot be predicted.
    """
    dropped = {side: prompts.dropped for side, prompts in (("harmful", harmful), ("matched", matched), ("unmatched", unmatched))}
    predictions = None
    if config.predict_categories:
        harmful, matched, predictions = predicted(model, harmful, matched, config)
    return ContrastInputs(model, *split_sides(harmful, matched, unmatched, config), dropped=dropped, predictions=predictions)


def split_sides(harmful: PromptSet, matched: PromptSet, unmatched: PromptSet, config: ContrastConfig) -> tuple[Split, Split, Split]:
    """Return three prompt files in three parts each; no model is needed to see whether they will do.

    Raises:
        UserError: a prompt stands on two sides, pairs or categories do not match, a category has too few prompts, or a side is too small.
    """
    check_disjoint({"harmful": harmful, "matched": matched, "unmatched": unmatched})
    check_pairs(harmful, matched, config)
    harmful, matched = inherited(matched, harmful), inherited(harmful, matched)
    parts = {"harmful": split_evenly(harmful, SHARES, seed=config.seed)}
    partners = {p.pair_id: part for part, prompts in parts["harmful"].items() for p in prompts if p.pair_id is not None}
    for side, prompts in (("matched", matched), ("unmatched", unmatched)):
        parts[side] = split_evenly(prompts, SHARES, seed=config.seed, partners=partners)
    sides = _sized(parts, config)
    check_all_extracted(harmful, sides[0].extract)
    return sides


def from_organism(organism: Organism, *, config: ContrastConfig) -> ContrastInputs:
    """Return the organism's own prompts, in which every harmful request has a benign one of the same topic and form."""
    language = organism.language
    makers = {"harmful": language.harmful, "matched": language.matched, "unmatched": language.harmless}
    parts = {side: {part: make(part) for part in SHARES} for side, make in makers.items()}
    return ContrastInputs(organism.aligned(), *_sized(parts, config), twin=organism.helpful())


def _sized(parts: Mapping[str, Mapping[str, PromptSet]], config: ContrastConfig) -> tuple[Split, Split, Split]:
    sides = {
        side: Split(**{part: _spread(prompts).first(_size(side, part, config)) for part, prompts in found.items()})
        for side, found in parts.items()
    }
    _check_sizes(sides)
    check_topics(sides["harmful"].extract, sides["matched"].extract, config)
    return sides["harmful"], sides["matched"], sides["unmatched"]


def _check_sizes(sides: Mapping[str, Split]) -> None:
    """Check that every side has enough prompts, on each of the parts (half as many where two sides share a part)."""
    for side, split in sides.items():
        for part, prompts in split.items():
            fewest = FEWEST if side == "harmful" or part == "extract" else FEWEST // 2
            if len(prompts) < fewest:
                raise UserError(
                    f"Only {len(prompts)} {side} prompts fall to {part}; at least {fewest} are needed, give a larger file (it is divided "
                    f"into {', '.join(f'{name} {share:.0%}' for name, share in SHARES.items())})."
                )


def _size(side: str, part: str, config: ContrastConfig) -> int:
    size = {"extract": config.extract_prompts, "validation": config.validation_prompts, "test": config.test_prompts}[part]
    return size if side == "harmful" or part == "extract" else -(-size // 2)


def _spread(prompts: PromptSet) -> PromptSet:
    """Return the prompts evenly over categories, in hash order of their pair (or text): the first n are a fair sample, pairs in step."""
    groups: dict[str | None, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: hashlib.sha256((p.pair_id or p.text).encode()).hexdigest()):
        groups.setdefault(prompt.category, []).append(prompt)
    ranked = [(rank, str(category), prompt) for category, group in groups.items() for rank, prompt in enumerate(group)]
    return replace(prompts, prompts=tuple(prompt for _, _, prompt in sorted(ranked, key=lambda item: item[:2])))
