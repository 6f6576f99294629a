"""Residual writers: the modules of a block whose outputs add up to what the block adds to the residual stream.

Nothing here knows a module by its name. A short probe with random tokens records what every module of a block puts out, least squares
finds which outputs (with which coefficient) make up the block's output minus its input, and fresh tokens prove that nothing is missing.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resect.errors import UserError
from resect.layout import Layout
from resect.models.decompose import Decomposition, decompositions
from resect.models.forward import Call, first_tensor, half_linears, model_inputs, run_instead, with_first_tensor
from resect.models.load import ChatModel, without_data
from resect.models.producers import Source, producers
from resect.models.trace import ROWS, Trace, mixes_tokens, trace_block

Kind = Literal["attention", "mlp", "embedding"]
Structure = tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]

_TOKENS = 4  # in each of two rows: the first is fitted, the second is the proof; each token is d_model equations


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
    relative error of `decompose.TOLERANCE`, and every writer's parameters reproduce an edit of its output. One forward pass shows all of
    it: every block runs in float32, whatever the dtype of the checkpoint, but for the products of its linear layers. The model is not
    changed.

    Raises:
        UserError: a block whose parts do not add up (naming the block and the gap), a writer whose parameters cannot be found, a
            block that runs more than once per pass, weights that are quantised or not loaded.
    """
    _check_weights(model)
    found: list[Writer] = []
    kinds: dict[Structure, Kind] = {}

    def proven(layer: int, call: Call) -> Any:
        output, writers = _proven(model, layer, call, kinds)
        found.extend(writers)
        return with_first_tensor(output, first_tensor(output).to(call.hidden().dtype))

    _run_blocks(model, proven)
    return tuple(found)


def _proven(model: ChatModel, layer: int, call: Call, kinds: dict[Structure, Kind]) -> tuple[Any, tuple[Writer, ...]]:
    """Return what a block puts out and its writers: in the cheap way if that proves them, else with every weight in float32."""
    name, block = model.block_names[layer], model.blocks[layer]
    if half_linears(block):
        with suppress(UserError, RuntimeError):  # a block may mix its tensors with weights in ways that take float32 throughout
            trace = trace_block(block, call, name=name, d_model=model.d_model, narrow=True)
            return trace.output, decomposed(trace, layer=layer, kinds=kinds)[1]
    trace = trace_block(block, call, name=name, d_model=model.d_model)
    return trace.output, decomposed(trace, layer=layer, kinds=kinds)[1]


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


def _run_blocks(model: ChatModel, act: Callable[[int, Call], Any]) -> None:
    """Run the probe tokens once, with `act` in the place of each block's own code."""
    runs = Counter[int]()

    def counted(layer: int, call: Call) -> Any:
        runs[layer] += 1
        return act(layer, call)

    _check_once(model, [sum(b is block for b in model.blocks) for block in model.blocks])
    run_instead(model.network, model.blocks, probe_inputs(model), counted)
    _check_once(model, [runs[layer] for layer in range(len(model.blocks))])


def _check_once(model: ChatModel, runs: Sequence[int]) -> None:
    for name, times in zip(model.block_names, runs, strict=True):
        if times != 1:
            raise UserError(f"Block {name} runs {times} times in one forward pass; only blocks that run once can be edited exactly.")


def probe_inputs(model: ChatModel) -> dict[str, Any]:
    """Return the keyword arguments of a forward pass over a few random ordinary tokens."""
    ids = _probe_ids(model)
    ones = torch.ones_like(ids)
    return model_inputs(model.network, input_ids=ids, attention_mask=ones, position_ids=ones.cumsum(1) - 1)


def _probe_ids(model: ChatModel) -> Tensor:
    """Return random ordinary tokens, [row, token]."""
    allowed = ordinary_tokens(model)
    picks = torch.randint(len(allowed), (ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return allowed[picks].to(model.device)


def ordinary_tokens(model: ChatModel) -> Int[Tensor, " token"]:
    """Return all tokens without those that have a role: padding, image placeholders and such would change what runs."""
    config = model.network.config.to_dict()
    roles = {v for k, v in config.items() if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
    vocab = cast(nn.Embedding, model.network.get_input_embeddings()).weight.shape[0]
    ordinary = torch.ones(vocab, dtype=torch.bool)
    ordinary[[i for i in roles | model.end_ids if 0 <= i < vocab]] = False
    return ordinary.nonzero()[:, 0]


def _check_weights(model: ChatModel) -> None:
    for prefix, block in zip(model.block_names, model.blocks, strict=True):
        for name, parameter in block.named_parameters():
            if parameter.is_meta:
                raise without_data(f"{prefix}.{name}")
            if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
                raise UserError(
                    f"Parameter {prefix}.{name} is quantised ({parameter.dtype}) and cannot be edited exactly; load the float16, bfloat16 "
                    "or float32 checkpoint."
                )
