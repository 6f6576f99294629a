"""Categories of prompts that have none: the nearest mean of the harmful prompts that have one, with its accuracy."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from scipy.special import bdtrc
from torch import Tensor

from resect.activations import capture
from resect.config import ContrastConfig
from resect.directions.nearest_class import Prediction, predict_classes
from resect.errors import UserError
from resect.models.chat import render
from resect.models.load import ChatModel
from resect.prompts import PromptSet
from resect.studies.contrast_topics import LEAST_OF_A_CATEGORY, counted, inherited

POSITION = "mean"
"""Topics show in all of a prompt's tokens: an organism's capabilities are told by their mean, and hardly by the last token (tested)."""
SURE = 0.05


def predicted(
    model: ChatModel, harmful: PromptSet, matched: PromptSet, config: ContrastConfig
) -> tuple[PromptSet, PromptSet, dict[str, Any] | None]:
    """Return both sides with a category for every prompt, and how those that had none came by it; None if all had one.

    Partners share a category. Read is the mean over a prompt's tokens; a side is centred on its own mean, so every prompt of it is read,
    labelled or not. `accuracy` is that of `labelled` harmful prompts left out of their class's mean, at the best of all `layers`;
    `harmful` and `matched` count the predicted prompts, `right` of `known` matched prompts would be predicted as what they are.

    Raises:
        UserError: fewer than two categories among the harmful prompts, one with a single prompt, or predictions that are no better than
            naming the largest category (binomial test, corrected for the choice of the layer).
    """
    harmful, matched = inherited(matched, harmful), inherited(harmful, matched)
    if all(p.category is not None for side in (harmful, matched) for p in side):
        return harmful, matched, None
    names = _names(harmful)
    rows = _rows(model, harmful, config)
    labelled = rows[torch.tensor([p.category is not None for p in harmful])]
    labels = torch.tensor([names.index(p.category) for p in harmful if p.category is not None])
    first = predict_classes(labelled, labels, rows)
    _check_better_than_chance(first, len(labelled))
    told = _filled(harmful, first, names)
    asked = inherited(told, matched)
    second = predict_classes(labelled, labels, _rows(model, matched, config))
    guesses = [names[i] for i in second.labels.tolist()]
    known = [p.category == guess for p, guess in zip(asked, guesses, strict=True) if p.category is not None]
    return (
        told,
        _filled(asked, second, names),
        {
            "layer": first.layer,
            "layers": len(first.accuracy),
            "accuracy": float(first.accuracy[first.layer]),
            "chance": first.chance,
            "labelled": len(labelled),
            "harmful": len(rows) - len(labelled),
            "matched": len(asked) - len(known),
            "known": len(known),
            "right": sum(known),
        },
    )


def _check_better_than_chance(found: Prediction, labelled: int) -> None:
    layers, accuracy = len(found.accuracy), float(found.accuracy[found.layer])
    by_chance = float(bdtrc(round(accuracy * labelled) - 1, labelled, found.chance))  # at least so many right
    if layers * by_chance >= SURE:
        raise UserError(
            f"Categories cannot be told from activations here: at the best of {layers} layers {accuracy:.0%} of {labelled} harmful prompts "
            f"are nearest to the mean of their own category, and the largest category alone is {found.chance:.0%}; write the categories "
            "into the files."
        )


def _filled(prompts: PromptSet, found: Prediction, names: list[str]) -> PromptSet:
    """Return the prompts, those without a category with the predicted one."""
    labelled = zip(prompts, found.labels.tolist(), strict=True)
    return replace(prompts, prompts=tuple(replace(p, category=p.category or names[label]) for p, label in labelled))


def _names(harmful: PromptSet) -> list[str]:
    counts = counted(p for p in harmful if p.category is not None)
    if len(counts) < 2:
        raise UserError(
            f"Categories are predicted from the harmful prompts that have one, and these have {len(counts)}; at least two categories are "
            "needed, write them into the harmful file."
        )
    lonely = next((c for c, n in counts.items() if n < LEAST_OF_A_CATEGORY), None)
    if lonely is not None:
        raise UserError(f"Category {lonely!r} has a single harmful prompt, so no accuracy can be told; add some or leave it out.")
    return list(counts)


def _rows(model: ChatModel, prompts: PromptSet, config: ContrastConfig) -> Float[Tensor, "prompt layer d_model"]:
    rendered = render(model.tokenizer, prompts.prompts, system=config.system, thinking=config.thinking)
    return capture(model, rendered, position=POSITION, batch_tokens=config.batch_tokens).rows
