"""Whether prompts can be matched: their categories and pairs, checked before anything runs."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from resect.config import ContrastConfig
from resect.errors import UserError
from resect.prompts import Prompt, PromptSet, pair_ids
from resect.prompts.splits import similarity

LEAST_OF_A_CATEGORY = 2
"""Fewest prompts a side that a category needs: of one prompt there is no mean with an error."""
MAPS = ("som", "som_svd")
"""Methods that train a map for each category."""


def check_pairs(harmful: PromptSet, matched: PromptSet, config: ContrastConfig) -> None:
    """Check that pairs can be compared, where they are asked for and both sides have pair ids.

    Raises:
        UserError: what `pair_ids` raises, or a pair whose two prompts are of different categories.
    """
    if "paired" in config.baselines and all(any(p.pair_id is not None for p in side) for side in (harmful, matched)):
        pair_ids(harmful, matched)
    categories = {p.pair_id: p.category for p in harmful if p.pair_id is not None and p.category is not None}
    for prompt in matched:
        wanted = categories.get(prompt.pair_id) if prompt.pair_id is not None else None
        if wanted is not None and prompt.category not in (None, wanted):
            raise UserError(
                f"The two prompts of pair {prompt.pair_id!r} have different categories, {wanted!r} and {prompt.category!r}, so this set "
                "is not matched; correct one of them, or leave the pair out."
            )


def inherited(partners: PromptSet, prompts: PromptSet) -> PromptSet:
    """Return the prompts, those without a category with that of their partner by pair id (if it has one)."""
    categories = {None: None} | {p.pair_id: p.category for p in partners if p.pair_id is not None}
    return replace(prompts, prompts=tuple(p if p.category else replace(p, category=categories.get(p.pair_id)) for p in prompts))


def check_topics(harmful: PromptSet, matched: PromptSet, config: ContrastConfig) -> None:
    """Check that matched prompts can be matched by category, with enough prompts of each.

    Raises:
        UserError: no categories, a category that the matched side lacks, a single one, one with a single prompt, or with fewer harmful
            prompts than a map has neurons.
    """
    for side, prompts in (("harmful", harmful), ("matched", matched)):
        bare = sum(p.category is None for p in prompts)
        if bare:
            raise UserError(
                f"{bare} of {len(prompts)} {side} prompts have no category, so no topic can be matched; give every row a category column, "
                "the same names on the harmful and the matched side, or let them be predicted (--set predict_categories=true)."
            )
    counts = {side: counted(prompts) for side, prompts in (("harmful", harmful), ("matched", matched))}
    lonely = [c for c in counts["harmful"] if c not in counts["matched"]]
    if lonely:
        raise UserError(
            f"Category {lonely[0]!r} has harmful prompts and no matched ones ({len(lonely)} such categories); "
            "add benign prompts on that topic, or leave the category out."
        )
    if len(counts["harmful"]) < 2:
        raise UserError(
            f"All harmful prompts have the one category {next(iter(counts['harmful']))!r}; matching by topic needs at least two topics."
        )
    for category in counts["harmful"]:
        for side in counts:
            if counts[side][category] < LEAST_OF_A_CATEGORY:
                raise UserError(
                    f"Category {category!r} has a single {side} prompt to extract from (half of a file's prompts are); a mean needs at "
                    "least two, add some or leave the category out."
                )
    check_maps(counts["harmful"], config)


def check_all_extracted(harmful: PromptSet, extract: PromptSet) -> None:
    """Check that directions are made from every category of a file; raises `UserError` naming the first that is in other parts only."""
    there, counts = counted(extract), counted(harmful)
    missing = next((c for c in counts if c not in there), None)
    if missing is not None:
        raise UserError(
            f"Category {missing!r} has {counts[missing]} of {len(harmful)} harmful prompts and none of them to extract from; give more of "
            "them, raise extract_prompts, or leave the category out."
        )


def check_maps(prompts: Mapping[str, int], config: ContrastConfig) -> None:
    """Check that every category has a prompt for each neuron of its map; raises `UserError` naming the first that has not."""
    neurons, maps = config.som_rows * config.som_columns, [m for m in config.methods if m in MAPS]
    small = next(((c, n) for c, n in prompts.items() if n < neurons), None)
    if maps and small:
        raise UserError(
            f"Category {small[0]!r} has {small[1]} harmful prompts to extract from and the map of method {maps[0]!r} {neurons} neurons; "
            "give at least as many prompts, a smaller map (--set som_rows=2 --set som_columns=2), or methods without maps."
        )


def counted(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Return the number of prompts of every category, categories sorted."""
    return dict(sorted(Counter(str(p.category) for p in prompts).items()))


def pair_similarity(harmful: Sequence[Prompt], matched: Sequence[Prompt], *, seed: int) -> dict[str, float | int] | None:
    """Return the mean word overlap (Jaccard) within pairs and, for comparison, between the same prompts paired at random.

    Pairs are by pair id where the sides share any, else by category. None where nothing can be paired.
    """
    partners: dict[str | None, list[Prompt]] = {}
    key = "pair_id" if {p.pair_id for p in harmful} & {p.pair_id for p in matched} - {None} else "category"
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
