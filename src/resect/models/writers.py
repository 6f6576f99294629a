"""Residual writers: the modules of a block whose outputs add up to what the block adds to the residual stream.

Nothing here knows a module by its name. A short probe with random tokens records what every module of a block puts out, least squares
finds which outputs (with which coefficient) make up the block's output minus its input, and fresh tokens prove that nothing is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.errors import UserError
from resect.layout import Layout
from resect.models.decompose import Decomposition, decompositions
from resect.models.forward import Call, model_inputs, recorded_calls, run_until
from resect.models.load import ChatModel
from resect.models.producers import Source, producers
from resect.models.trace import ROWS, Trace, mixes_tokens, trace_block

Kind = Literal["attention", "mlp", "embedding"]
Structure = tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]

_TOKENS = 8  # in each of two rows: the first is fitted, the second is the proof; the time of the probe is proportional to it


@dataclass(frozen=True)
class WriterParameter:
    """A parameter (by its name in the network) that maps into a writer's output, and the axis of it that does."""

    name: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Writer:
    """One residual writer: its block adds coefficient * gain * y / rms(y) to the stream, or coefficient * y without a gain.

    `module` is the module whose output is y, by its name in the network: the place for a hook, and the writer's name, since no two
    writers share one. `parameters` are all that map into y. `gain` is the gain of the norm between y and the sum, where there is one.
    `error` is the relative error of the completeness proof of the block. `mixed`: the block weighs streams and writers anew at each token
    (`coefficient` is the mean size); an edit removes what its writers add, not what it carries over from its input.
    """

    name: str
    layer: int
    kind: Kind
    module: str
    gain: Float[Tensor, " d_model"] | None
    parameters: tuple[WriterParameter, ...]
    coefficient: float = 1.0
    error: float = 0.0
    mixed: bool = False


def find_writers(model: ChatModel) -> tuple[Writer, ...]:
    """Return every residual writer of the text decoder, block by block, proven complete.

    For each block the sum over writers of coefficient * output equals output - input on tokens that took no part in the search, to a
    relative error of `decompose.TOLERANCE`, and every writer's parameters reproduce an edit of its output. Computed in float32, block by
    block, whatever the dtype of the checkpoint. The model is not changed.

    Raises:
        UserError: a block whose parts do not add up (naming the block and the gap), a writer whose parameters cannot be found, a
            block that runs more than once per pass, weights that are quantised or not loaded.
    """
    _check_weights(model)
    found: list[Writer] = []
    kinds: dict[Structure, Kind] = {}
    for layer, (name, block, call) in enumerate(_block_calls(model)):
        found += block_writers(name, block, call, layer=layer, d_model=model.d_model, kinds=kinds)
    return tuple(found)


def block_writers(
    name: str, block: nn.Module, call: Call, *, layer: int, d_model: int, kinds: dict[Structure, Kind] | None = None
) -> tuple[Writer, ...]:
    """Return the writers of one block, proven complete on a call of it with two rows of tokens; raises what `find_writers` raises.

    `kinds` remembers which modules mix tokens, by their structure: a name for people, which no proof rests on.
    """
    return decomposed(trace_block(block, call, name=name, d_model=d_model), layer=layer, kinds=kinds)[1]


def decomposed(trace: Trace, *, layer: int, kinds: dict[Structure, Kind] | None = None) -> tuple[Decomposition, tuple[Writer, ...]]:
    """Return the first way to write the block's output of which every part has parameters to edit, and its writers.

    Raises:
        UserError: if there is none.
    """
    kinds = {} if kinds is None else kinds
    refused: list[UserError] = []
    for found in decompositions(trace):
        try:
            sources = [(part, source) for part in found.coefficients for source in producers(trace, part)]
            return found, tuple(_writer(trace, source, found.coefficients[part], found, layer, kinds) for part, source in sources)
        except UserError as error:  # a part without parameters of its own may be made of parts that have them
            refused.append(error)
    raise refused[0]


def to_tensors(writers: Sequence[Writer]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the gains by the writers' names, and everything else as JSON; `from_tensors` is the inverse."""
    gains = {w.name: w.gain for w in writers if w.gain is not None}
    return gains, [asdict(replace(w, gain=None)) for w in writers]


def from_tensors(gains: Mapping[str, Tensor], description: Sequence[Mapping[str, Any]]) -> tuple[Writer, ...]:
    """Return the writers that `to_tensors` took apart."""
    parameters = [tuple(WriterParameter(**p) for p in entry["parameters"]) for entry in description]
    read = [{**entry, "gain": gains.get(entry["name"]), "parameters": own} for entry, own in zip(description, parameters, strict=True)]
    return tuple(Writer(**entry) for entry in read)


def _writer(trace: Trace, source: Source, coefficient: float, found: Decomposition, layer: int, kinds: dict[Structure, Kind]) -> Writer:
    top = source.module.split(".")[0]
    top = top if top in trace.calls else source.module
    structure = _structure(trace.block.get_submodule(top))
    if structure not in kinds:
        kinds[structure] = "attention" if mixes_tokens(trace, top) else "mlp"
    parameters = tuple(WriterParameter(f"{trace.name}.{source.module}.{p}", layout) for p, layout in source.parameters)
    module = f"{trace.name}.{source.module}"
    return Writer(module, layer, kinds[structure], module, source.gain, parameters, coefficient, found.error, mixed=found.mixed)


def _structure(module: nn.Module) -> Structure:
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _block_calls(model: ChatModel) -> list[tuple[str, nn.Module, Call]]:
    """Run the probe tokens once and return how each block was called."""
    ids = probe_ids(model)
    ones = torch.ones_like(ids)
    inputs = model_inputs(model.network, input_ids=ids, attention_mask=ones, position_ids=ones.cumsum(1) - 1)
    blocks = dict(zip(model.block_names, model.blocks, strict=True))
    with recorded_calls(blocks) as record:
        run_until(model.network, model.blocks[-1], inputs, hooks={})
    for name, calls in record.items():
        # A block in two places is recorded under both names; the pass may have ended before its second run.
        runs = len(calls) * sum(b is blocks[name] for b in model.blocks)
        if runs != 1:
            raise UserError(f"Block {name} runs {runs} times in one forward pass; only blocks that run once can be edited exactly.")
    return [(name, blocks[name], calls[0][0]) for name, calls in record.items()]


def probe_ids(model: ChatModel) -> Tensor:
    """Return random ordinary tokens, [row, token]: those with a role (padding, image placeholders …) would change what runs."""
    config = model.network.config.to_dict()
    roles = {v for k, v in config.items() if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
    vocab = cast(nn.Embedding, model.network.get_input_embeddings()).weight.shape[0]
    roles |= model.end_ids
    allowed = torch.tensor([i for i in range(vocab) if i not in roles])
    picks = torch.randint(len(allowed), (ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return allowed[picks].to(model.device)


def _check_weights(model: ChatModel) -> None:
    for prefix, block in zip(model.block_names, model.blocks, strict=True):
        for name, parameter in block.named_parameters():
            if parameter.is_meta:
                raise UserError(f"Parameter {prefix}.{name} has no data (offloaded, or on the meta device); load the whole model first.")
            if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
                raise UserError(
                    f"Parameter {prefix}.{name} is quantised ({parameter.dtype}) and cannot be edited exactly; load the float16, bfloat16 "
                    "or float32 checkpoint."
                )
