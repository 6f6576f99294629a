"""What the contrast study works on: harmful prompts, benign ones on the same topics, and benign ones on any topic."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from resect.config import ContrastConfig
from resect.errors import UserError
from resect.models.load import ChatModel
from resect.organism.shipped import Organism
from resect.prompts import Prompt, PromptSet, check_disjoint, split_evenly
from resect.prompts.splits import similarity
from resect.studies.inputs import SHARES, Split, StudyInputs


@dataclass(frozen=True, eq=False)
class ContrastInputs:
    """Model and three sides, each in three disjoint parts; `twin` is the helpful-only model (organisms only).

    Of matched and unmatched validation and test prompts there are half as many as of harmful ones: both together are as many.
    """

    model: ChatModel
    harmful: Split
    matched: Split
    unmatched: Split
    twin: ChatModel | None = None

    def __post_init__(self) -> None:
        check_topics(self.harmful.extract, self.matched.extract)

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
        UserError: a prompt stands on two sides, matched prompts share no pair id and no category with the harmful ones, a category has one
            prompt only, or a split is too small.
    """
    check_disjoint({"harmful": harmful, "matched": matched, "unmatched": unmatched})
    check_topics(harmful, matched)
    parts = {"harmful": split_evenly(harmful, SHARES, seed=config.seed)}
    partners = {p.pair_id: part for part, prompts in parts["harmful"].items() for p in prompts if p.pair_id is not None}
    for side, prompts in (("matched", matched), ("unmatched", unmatched)):
        parts[side] = split_evenly(prompts, SHARES, seed=config.seed, partners=partners)
    return _inputs(model, parts, config)


def from_organism(organism: Organism, *, config: ContrastConfig) -> ContrastInputs:
    """Return the organism's own prompts, in which every harmful request has a benign one of the same topic and form."""
    language = organism.language
    makers = {"harmful": language.harmful, "matched": language.matched, "unmatched": language.harmless}
    parts = {side: {part: make(part) for part in SHARES} for side, make in makers.items()}
    return _inputs(organism.aligned(), parts, config, twin=organism.helpful())


def _inputs(
    model: ChatModel,
    parts: dict[str, dict[str, PromptSet]],
    config: ContrastConfig,
    *,
    twin: ChatModel | None = None,
) -> ContrastInputs:
    sides = {
        side: Split(**{part: _spread(prompts).first(_size(side, part, config)) for part, prompts in found.items()})
        for side, found in parts.items()
    }
    return ContrastInputs(model=model, **sides, twin=twin)


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


def check_topics(harmful: PromptSet, matched: PromptSet) -> None:
    """Check that matched prompts can be matched: by category, and by pair where there are pair ids.

    Raises:
        UserError: no categories, a category that only one side has, a single category, or one with a single prompt.
    """
    categories = {side: {p.category for p in prompts} for side, prompts in (("harmful", harmful), ("matched", matched))}
    for side, found in categories.items():
        if None in found:
            raise UserError(
                f"Some {side} prompts have no category, so no topic can be matched; give every row a category column, "
                "the same names on the harmful and the matched side."
            )
    lonely = sorted(str(c) for c in categories["harmful"] - categories["matched"])
    if lonely:
        raise UserError(
            f"Category {lonely[0]!r} has harmful prompts and no matched ones ({len(lonely)} such categories); "
            "add benign prompts on that topic, or leave the category out."
        )
    if len(categories["harmful"]) < 2:
        raise UserError(
            f"All harmful prompts have the one category {next(iter(categories['harmful']))!r}; matching by topic needs at least two topics."
        )
    for category in sorted(str(c) for c in categories["harmful"]):
        for side, prompts in (("harmful", harmful), ("matched", matched)):
            if sum(p.category == category for p in prompts) < 2:
                raise UserError(f"Category {category!r} has a single {side} prompt; a mean needs at least two, add some or leave it out.")


def pair_similarity(harmful: Sequence[Prompt], matched: Sequence[Prompt], *, seed: int) -> dict[str, float | int] | None:
    """Return the mean word overlap (Jaccard) within pairs and, for comparison, between the same prompts paired at random.

    Pairs are by pair id, else by category. None where nothing can be paired.
    """
    partners: dict[str | None, list[Prompt]] = {}
    key = "pair_id" if any(p.pair_id for p in harmful) else "category"
    for prompt in matched:
        partners.setdefault(getattr(prompt, key), []).append(prompt)
    pairs = [(p, q) for p in harmful if getattr(p, key) is not None for q in partners.get(getattr(p, key), [])]
    if not pairs:
        return None
    others = [q for _, q in pairs]
    random.Random(seed).shuffle(others)
    within = sum(similarity(p.text, q.text) for p, q in pairs) / len(pairs)
    across = sum(similarity(p.text, q.text) for (p, _), q in zip(pairs, others, strict=True)) / len(pairs)
    return {"within": within, "shuffled": across, "n": len(pairs)}
