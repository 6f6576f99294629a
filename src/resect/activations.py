"""Activations of the residual stream at chosen positions, and nothing else: no logits, no layers above the last wanted one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resect.errors import UserError, unknown_name
from resect.models.batches import MAX_PADDING, Batch, Side
from resect.models.chat import Rendered
from resect.models.forward import model_inputs, run_until
from resect.models.load import ChatModel
from resect.models.padding import model_batches

Named = Literal["last", "last_user", "mean"]
Position = Named | int


@dataclass(frozen=True, eq=False)
class Activations:
    """Residual stream after block `layers[j]`, at `position` of each prompt, in `rows[:, j]`; float32 on the CPU."""

    rows: Float[Tensor, "prompt layer d_model"]
    layers: tuple[int, ...]
    position: Position


def capture(
    model: ChatModel,
    rendered: Sequence[Rendered],
    *,
    layers: Sequence[int] | None = None,
    position: Position | str = "last",
    batch_tokens: int = 8192,
    side: Side = "left",
) -> Activations:
    """Return the residual stream after the wanted blocks at one position of every prompt, in the order of the prompts.

    The rows do not depend on the padding side or the batch size (to 1e-5 in float32): an architecture that does not heed padding gets
    batches of prompts of one length. Only the wanted positions are kept, and the
    forward pass ends after the last wanted block.

    Args:
        model: the model; hooks of an edit that is applied at the time have their effect.
        rendered: prompts as tokens.
        layers: block indices 0 to L-1, each once; all of them by default.
        position: "last" token of the rendered prompt (generation prompt included), "last_user" (last token of the user's text), "mean"
            over all tokens of the prompt, or a negative integer counted from the last token (-1 is "last").
        batch_tokens: most tokens in a batch, padding included; of padding at most `MAX_PADDING`, so lengths that differ are apart.
        side: padding side.

    Raises:
        UserError: no prompts, a layer outside the model or named twice, an unknown position, a position before a prompt's first token,
            a prompt longer than the context, or activations with NaN or infinity (naming the layer and the count).
    """
    wanted = _check_layers(layers, len(model.blocks))
    position = _check_position(position)
    first = _tokens_at(position, rendered)
    model.check_length(max((len(r.ids) for r in rendered), default=0))
    rows = torch.empty(len(rendered), len(wanted), model.d_model)
    for batch in model_batches(model, rendered, batch_tokens=batch_tokens, max_padding=MAX_PADDING, side=side):
        offsets = torch.tensor([first[i] for i in batch.rows])
        found = _capture_batch(model, batch, wanted=wanted, columns=None if position == "mean" else batch.starts + offsets)
        rows[list(batch.rows)] = found
    _check_finite(rows, wanted, network_dtype=model.network.dtype)
    return Activations(rows, wanted, position)


def _capture_batch(
    model: ChatModel, batch: Batch, *, wanted: tuple[int, ...], columns: Int[Tensor, " prompt"] | None
) -> Float[Tensor, "prompt layer d_model"]:
    got: dict[int, Tensor] = {}
    mask = batch.attention_mask.bool()

    def keep(layer: int) -> Callable[[Tensor], None]:
        def act(hidden: Tensor) -> None:
            if columns is None:
                got[layer] = _token_mean(hidden, mask.to(hidden.device))
            else:
                got[layer] = hidden[torch.arange(len(columns), device=hidden.device), columns.to(hidden.device)].float()

        return act

    on_device = batch.to(model.device)
    inputs = model_inputs(
        model.network,
        input_ids=on_device.input_ids,
        attention_mask=on_device.attention_mask,
        position_ids=on_device.position_ids,
    )
    run_until(model.network, model.blocks[max(wanted)], inputs, hooks={model.blocks[layer]: keep(layer) for layer in wanted})
    # One copy to the CPU per device and batch, not one per layer.
    if len({t.device for t in got.values()}) == 1:
        return torch.stack([got[layer] for layer in wanted], dim=1).cpu()
    return torch.stack([got[layer].cpu() for layer in wanted], dim=1)


def _token_mean(hidden: Float[Tensor, "prompt token d_model"], mask: Bool[Tensor, "prompt token"]) -> Float[Tensor, "prompt d_model"]:
    # Padding may hold anything, NaN included, so it is replaced and not multiplied by zero.
    sums = torch.float32 if hidden.device.type == "mps" else torch.float64
    real = hidden.masked_fill(~mask[..., None], 0).sum(1, dtype=sums)
    return (real / mask.sum(1, keepdim=True)).float()


def _check_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    wanted = tuple(range(count)) if layers is None else tuple(layers)
    if not wanted:
        raise UserError(f"No layers are given; name at least one of 0 to {count - 1}, or leave layers out for all.")
    for layer in wanted:
        if not 0 <= layer < count:
            raise UserError(f"Layer {layer} does not exist: the model has {count} blocks; layers go from 0 to {count - 1}.")
    if len(set(wanted)) < len(wanted):
        raise UserError(f"A layer is named twice in {list(wanted)}; name each layer once.")
    return wanted


def _check_position(position: Position | str) -> Position:
    if isinstance(position, int):
        if position >= 0:
            raise UserError(
                f"Position {position} is not allowed: a number counts from the end, so it must be negative; -1 is the last token."
            )
        return position
    for known in get_args(Named):
        if position == known:
            return known
    raise unknown_name("position", position, get_args(Named))


def _tokens_at(position: Position, rendered: Sequence[Rendered]) -> list[int]:
    """Return the index of the wanted token in each prompt; of the first token for "mean"."""
    if not rendered:
        raise UserError("There are no prompts to capture activations of; give at least one.")
    if isinstance(position, str):
        return [{"last": len(r.ids) - 1, "last_user": r.last_user if position == "last_user" else 0, "mean": 0}[position] for r in rendered]
    short = next((i for i, r in enumerate(rendered) if len(r.ids) < -position), None)
    if short is not None:
        length = len(rendered[short].ids)
        raise UserError(f"Position {position} lies before prompt {short}, which has {length} tokens; use {-length} or later.")
    return [len(r.ids) + position for r in rendered]


def _check_finite(rows: Float[Tensor, "prompt layer d_model"], layers: tuple[int, ...], *, network_dtype: torch.dtype) -> None:
    bad = (~torch.isfinite(rows)).sum((0, 2))
    if int(bad.sum()) == 0:
        return
    at = int(bad.nonzero()[0])
    hint = "bfloat16 or float32" if network_dtype == torch.float16 else "float32"
    name = str(network_dtype).removeprefix("torch.")
    raise UserError(
        f"Activations after layer {layers[at]} hold NaN or infinity in {int(bad[at])} of {rows[:, at].numel()} values (the model runs in "
        f"{name}); load it with dtype {hint}, and check its weights if that is not enough."
    )
