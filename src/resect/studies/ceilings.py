"""How much of the helpful twin an edit could restore at best: the oracle subspace and the layer-revert curve (organisms only).

A refusal that overwrote content cannot be undone by removing a direction, whichever it is. These two ceilings say how
much was gated and how much was overwritten, so that an arm's recovery is read against what was possible.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.activations import capture
from resect.config import SRAConfig
from resect.edit.plan import EditPlan, make_plan
from resect.evaluation import recovery
from resect.evaluation.statistics import rate
from resect.evaluation.verdicts import judge_markers
from resect.generation import Response
from resect.models.chat import Rendered
from resect.models.load import ChatModel
from resect.prompts import PromptSet
from resect.studies.arms import Choice, places
from resect.studies.behaviour import Behaviour
from resect.studies.lab import Lab
from resect.studies.scores import Reference
from resect.studies.selection import PLACES

RANKS = (1, 2, 4, 8)
SETTINGS = (*PLACES, "position", "max_new_tokens")
"""Settings that `measure` reads."""


def measure(
    lab: Lab, twin: ChatModel, behaviour: Behaviour, reference: Reference, twin_validation: tuple[Response, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Return both ceilings."""
    return {
        "oracle": oracle(lab, twin, behaviour, reference, twin_validation),
        "layer_revert": layer_revert(lab, twin, behaviour, reference),
    }


def oracle(
    lab: Lab[SRAConfig], twin: ChatModel, behaviour: Behaviour, reference: Reference, twin_validation: tuple[Response, ...]
) -> list[dict[str, Any]]:
    """Return, per rank k, test recovery after removing the top k singular vectors of aligned minus helpful activations.

    Source layer and window are those with the best recovery on validation, at strength 1.
    """
    found = []
    prompts = behaviour.harmful["extract"].prompts
    difference = _rows(lab, lab.model, prompts) - _rows(lab, twin, prompts)
    basis = torch.linalg.svd(difference.double().transpose(0, 1), full_matrices=False).Vh.float()
    validation, test = behaviour.harmful["validation"].prompts, behaviour.harmful["test"].prompts
    for rank in (k for k in RANKS if k <= basis.shape[1]):
        plans = [_plan(lab, basis[:, :rank], place) for place in places(lab.config, lab.layers)]
        best = max(plans, key=lambda plan: sum(_agreement(lab, validation, plan, twin_validation)))
        found.append({"rank": rank, **_figures(_said(lab, test, best), reference)})
    return found


def layer_revert(lab: Lab[SRAConfig], twin: ChatModel, behaviour: Behaviour, reference: Reference) -> list[dict[str, Any]]:
    """Return test recovery when all blocks from `first_layer` on get the helpful twin's weights back."""
    curve = []
    for first in range(lab.layers):
        with _reverted(lab.model, twin, first):
            said = lab.respond(behaviour.harmful["test"].prompts, max_new_tokens=lab.config.max_new_tokens)
        curve.append({"first_layer": first, **_figures(said, reference)})
    return curve


def _rows(lab: Lab[SRAConfig], model: ChatModel, prompts: PromptSet) -> Float[Tensor, "prompt layer d_model"]:
    return capture(model, lab.render(prompts), position=lab.config.position, batch_tokens=lab.config.batch_tokens).rows


def _plan(lab: Lab[SRAConfig], basis: Float[Tensor, "layer k d_model"], place: Choice) -> EditPlan:
    source = basis if place.source is None else basis[place.source].expand_as(basis)
    return make_plan(lab.writers, source, place.strengths(torch.ones(lab.layers)))


def _agreement(lab: Lab[SRAConfig], prompts: PromptSet, plan: EditPlan, twin: tuple[Response, ...]) -> tuple[bool, ...]:
    """Return where the edited model answers as the twin does; a response that has left the twin's is not read further."""
    wanted = {tuple(prompt.ids): response.ids for prompt, response in zip(lab.render(prompts), twin, strict=True)}

    def left(prompt: Rendered, ids: tuple[int, ...]) -> bool:
        return wanted[tuple(prompt.ids)][: len(ids)] != ids

    with lab.edited(plan):
        return recovery.agreement(lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens, stop=left), twin)


def _said(lab: Lab[SRAConfig], prompts: PromptSet, plan: EditPlan) -> tuple[Response, ...]:
    with lab.edited(plan):
        return lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens)


def _figures(said: tuple[Response, ...], reference: Reference) -> dict[str, Any]:
    refused = [v == "refuse" for v in judge_markers(said)]
    agreed = recovery.agreement(said, reference.twin or ())
    return {"refusal_rate": rate(refused).to_json(), "recovery": rate(list(agreed)).to_json()}


@contextmanager
def _reverted(model: ChatModel, twin: ChatModel, first: int) -> Iterator[None]:
    """Give blocks `first` and later the twin's weights for the time of a `with` block."""
    saved = [{k: v.clone() for k, v in block.state_dict().items()} for block in model.blocks[first:]]
    try:
        for block, other in zip(model.blocks[first:], twin.blocks[first:], strict=True):
            block.load_state_dict(other.state_dict())
        yield
    finally:
        for block, state in zip(model.blocks[first:], saved, strict=True):
            block.load_state_dict(state)
