"""Prompts as values: load, split, check. Rendering to tokens lives in `models/chat.py`."""

from resect.prompts.loading import TEXT_COLUMNS, load_prompts
from resect.prompts.pairs import pair_ids
from resect.prompts.splits import NearDuplicate, check_disjoint, near_duplicates, split_by_hash, split_evenly
from resect.prompts.values import Prompt, PromptSet

__all__ = [
    "TEXT_COLUMNS",
    "NearDuplicate",
    "Prompt",
    "PromptSet",
    "check_disjoint",
    "load_prompts",
    "near_duplicates",
    "pair_ids",
    "split_by_hash",
    "split_evenly",
]
