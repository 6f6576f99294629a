"""What blocks add to the residual stream on given text: the material that an edit takes its component from."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.errors import UserError
from resect.models.batches import Batch, batches
from resect.models.chat import Rendered
from resect.models.forward import model_inputs, run_until
from resect.models.load import ChatModel


def capture_updates(
    model: ChatModel, rendered: Sequence[Rendered], *, tokens: int, seed: int, batch_tokens: int = 8192
) -> Float[Tensor, "token layer d_model"]:
    """Return block output minus block input at `tokens` sampled tokens of the prompts (all tokens, if there are fewer), float32.

    The sample is drawn without replacement over all tokens but each prompt's first, whose huge activations (an attention
    sink in most models) would drown the rest. The same seed gives the same tokens whatever the batch size.

    Raises:
        UserError: if no prompt has a second token.
    """
    places = [(row, token) for row, r in enumerate(rendered) for token in range(1, len(r.ids))]
    if not places:
        raise UserError("No prompt has more than one token, so there is nothing to sample block updates from; give longer prompts.")
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:tokens].sort().values.tolist()
    wanted: dict[int, list[tuple[int, int]]] = {}
    for slot, place in enumerate(order):
        row, token = places[place]
        wanted.setdefault(row, []).append((token, slot))
    found = torch.empty(len(order), len(model.blocks), model.d_model)
    for batch in batches(rendered, batch_tokens=batch_tokens, pad_id=model.pad_id):
        _capture_batch(model, batch, wanted, found)
    return found


def _capture_batch(model: ChatModel, batch: Batch, wanted: dict[int, list[tuple[int, int]]], found: Tensor) -> None:
    starts = batch.starts.tolist()
    cells = [(k, starts[k] + token, slot) for k, row in enumerate(batch.rows) for token, slot in wanted.get(row, [])]
    if not cells:
        return
    rows, columns, slots = (torch.tensor(axis) for axis in zip(*cells, strict=True))
    streams: list[Tensor] = []

    def keep(hidden: Tensor) -> None:
        streams.append(hidden[rows.to(hidden.device), columns.to(hidden.device)].float().cpu())

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    on_device = batch.to(model.device)
    inputs = model_inputs(
        model.network, input_ids=on_device.input_ids, attention_mask=on_device.attention_mask, position_ids=on_device.position_ids
    )
    first = model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
    hooks: dict[nn.Module, Callable[[Tensor], None]] = {block: keep for block in model.blocks}
    try:
        run_until(model.network, model.blocks[-1], inputs, hooks=hooks)
    finally:
        first.remove()
    found[slots] = torch.stack([after - before for before, after in pairwise(streams)], dim=1)
