"""What writes to the residual stream before the first block: token embeddings, and in some models tables of positions.

As with the writers of blocks, nothing is known by name: the input of block 0 is fitted as a sum of what the embedding modules put out,
and the fit has to be exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from resect.errors import UserError
from resect.models.decompose import TOLERANCE
from resect.models.forward import recorded_calls, run_until, streams
from resect.models.load import ChatModel
from resect.models.writers import Writer, WriterParameter, probe_inputs

BEFORE_BLOCKS = -1
"""The layer of an embedding: it writes before block 0."""

_HALF = 2e-2  # the same gap where the embeddings are scaled in half precision


def find_embeddings(model: ChatModel) -> tuple[Writer, ...]:
    """Return the embedding modules whose outputs, each times a coefficient, add up to the input of block 0.

    Multipliers (Gemma's square root of the width, Granite's) are the coefficients; a direction removed from the module's output is
    removed from the stream whatever they are.

    Raises:
        UserError: something else stands between the embeddings and the first block (a norm, a projection), naming the gap.
    """
    stream, outputs = _probe(model)
    coefficients = _fit(stream, outputs)
    rest = stream - sum((k * outputs[name] for name, k in coefficients.items()), start=torch.zeros_like(stream))
    gap = float(rest.norm() / stream.norm())
    if gap > (TOLERANCE if model.network.dtype == torch.float32 else _HALF):
        raise UserError(
            f"The input of block {model.block_names[0]} is no sum of embeddings ({', '.join(outputs) or 'none found'}; relative gap "
            f"{gap:.1e}): a norm or a projection stands between them, so a direction cannot be removed from them exactly; leave the "
            "embeddings as they are."
        )
    return tuple(_writer(model, name, k, gap) for name, k in coefficients.items())


def embedding_names(model: ChatModel) -> tuple[str, ...]:
    """Return the names of all embedding modules of the text decoder outside its blocks, whatever they feed."""
    decoder = {id(module) for module in model.network.get_decoder().modules()}
    blocks = tuple(f"{name}." for name in model.block_names)
    tables = [n for n, m in model.network.named_modules() if isinstance(m, nn.Embedding) and id(m) in decoder]
    return tuple(name for name in tables if not name.startswith(blocks))


def tied_head(model: ChatModel) -> str | None:
    """Return the name of the output head's weight if it is the token embedding itself, else None."""
    table, head = model.network.get_input_embeddings(), model.network.get_output_embeddings()
    if head is None or cast(Any, head).weight is not cast(Any, table).weight:
        return None
    return next(f"{name}.weight" for name, module in model.network.named_modules() if module is head)


def untied(model: ChatModel) -> ChatModel:
    """Give the output head weights of its own, equal to the token embedding, in place; nothing that the model computes changes.

    The configuration says so too, so that a saved model is read back with both. Raises `UserError` if the two are not tied.
    """
    name, head = tied_head(model), cast(Any, model.network.get_output_embeddings())
    if name is None:
        raise UserError(f"The output head of {model.name} is not tied to the token embedding; there is nothing to untie.")
    note = f"{name} was tied to the token embedding and has weights of its own now."
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.network.config, model.network.config.get_text_config(decoder=True))}.values():
        config.tie_word_embeddings = False
    return replace(model, notes=(*model.notes, note))


def _writer(model: ChatModel, name: str, coefficient: float, gap: float) -> Writer:
    tables = [f"{name}.{n}" for n, p in model.network.get_submodule(name).named_parameters() if p.ndim == 2]
    parameters = tuple(WriterParameter(table, "in_out") for table in tables)
    return Writer(name, BEFORE_BLOCKS, "embedding", name, None, parameters, coefficient, gap)


def _probe(model: ChatModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the input of block 0 and what each embedding module put out, [stream, row, token, d_model]."""
    inputs = probe_inputs(model)
    modules: dict[str, nn.Module] = {name: model.network.get_submodule(name) for name in embedding_names(model)}
    with recorded_calls({**modules, "": model.blocks[0]}) as record:
        run_until(model.network, model.blocks[0], inputs, hooks={})
    stream = streams(record[""][0][0].hidden().double().cpu(), model.d_model, inputs["input_ids"].shape)
    found = {name: record[name][0][1].double().cpu() for name in modules if len(record[name]) == 1}
    return stream, {n: out.expand(stream.shape) for n, out in found.items() if out.shape[-1] == model.d_model}


def _fit(stream: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, float]:
    if not outputs:
        return {}
    matrix = torch.stack([out.flatten() for out in outputs.values()], dim=1)
    found = torch.linalg.lstsq(matrix, stream.flatten()[:, None], driver="gelsd").solution.flatten().tolist()
    return {name: k for name, k in zip(outputs, found, strict=True) if abs(k) * float(outputs[name].norm()) > TOLERANCE * stream.norm()}


def outside_decoder(model: ChatModel) -> tuple[str, ...]:
    """Return the outermost modules with parameters that are neither in the text decoder nor the output head: encoders and projectors."""
    decoder, head = model.network.get_decoder(), model.network.get_output_embeddings()
    known = {id(module) for module in decoder.modules()} | ({id(head)} if head is not None else set())
    holding = {name for name, module in model.network.named_modules() if any(part is decoder for part in module.modules())}
    outside = [
        name
        for name, module in model.network.named_modules()
        if id(module) not in known and name not in holding and next(module.parameters(), None) is not None
    ]
    return tuple(name for name in outside if not any(name.startswith(f"{other}.") for other in outside))
