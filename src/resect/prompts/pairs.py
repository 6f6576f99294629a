"""Pairs of prompts in two files, matched by pair id."""

from collections import Counter

from resect.errors import UserError
from resect.prompts.values import PromptSet


def pair_ids(harmful: PromptSet, harmless: PromptSet) -> tuple[list[str], list[str]]:
    """Return the pair id of every prompt of both sides; every harmful prompt has exactly one harmless partner.

    Harmless prompts that are nobody's partner may be there: nothing is subtracted of them.

    Raises:
        UserError: prompts without a pair id, an id that two prompts of one side share, a harmful prompt without a partner.
    """
    found: list[list[str]] = []
    for side in (harmful, harmless):
        ids = [p.pair_id for p in side if p.pair_id is not None]
        if len(ids) < len(side):
            raise UserError(
                f"{len(side) - len(ids)} of {len(side)} prompts of {side.name!r} have no pair_id; give every row one, or match by category."
            )
        twice = next((name for name, n in Counter(ids).items() if n > 1), None)
        if twice is not None:
            raise UserError(f"Pair id {twice!r} stands on {Counter(ids)[twice]} prompts of {side.name!r}; give every pair its own id.")
        found.append(ids)
    alone = [name for name in found[0] if name not in set(found[1])]
    if alone:
        raise UserError(
            f"{len(alone)} of {len(harmful)} prompts of {harmful.name!r} have no partner in {harmless.name!r} (the first has pair id "
            f"{alone[0]!r}); add their partners, or leave them out."
        )
    return found[0], found[1]
