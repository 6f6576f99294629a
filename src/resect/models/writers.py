"""Residual writers: the modules of a block whose outputs add up to what the block adds to the residual stream.

Nothing here knows a module by its name. A short probe with random tokens records what every module of a block puts out, least squares
finds which outputs make up the block's output minus its input, and fresh tokens prove it; one block of a structure can show its like.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
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
from resect.models.structure import Values, form, structures
from resect.models.trace import ROWS, Trace, mixes_tokens, trace_block

Kind = Literal["attention", "mlp", "embedding"]
Part = tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]

CANNOT_RUN = (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError)
"""What a network raises where blocks hand their input on that leave something for later ones."""

_TOKENS = 4  # in each of two rows: the first is fitted, the second is the proof; each token is d_model equations
_FAINT = 1e-4  # of what a block adds: an output that small might be a writer that does not show


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
    `error` is the relative error of the completeness proof of the block `proven_in`: the writer's own, or the one of its structure that was
    proven for all. `mixed`: the block weighs streams and writers anew at each token (`coefficient` is the mean size); an edit removes what
    its writers add, not what it carries over from its input.
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
    proven_in: str = ""


def find_writers(model: ChatModel, *, every_block: bool = True) -> tuple[Writer, ...]:
    """Return every residual writer of the text decoder, block by block, proven complete.

    For each block the sum over writers of coefficient * output equals output - input on tokens that took no part in the search, to a
    relative error of `decompose.TOLERANCE`, and every writer's parameters reproduce an edit of its output. One forward pass shows all of
    it: every block runs in float32, whatever the dtype of the checkpoint, but for the products of its linear layers. The model is not
    changed.

    Without `every_block` that holds for one block of each structure (`Writer.proven_in`), and the others, which do not run, take its
    writers over with their own gains. What their code does unlike it, unseen by `structure`, is left to the edit proof, which asks every
    edited block: for callers that end in one.

    Raises:
        UserError: a block whose parts do not add up (naming the block and the gap), a writer whose parameters cannot be found, a
            block that runs more than once per pass, weights that are quantised or not loaded.
    """
    _check_weights(model)
    if not every_block:
        # Whatever stops it, a real fault too, is told by the search through all blocks.
        with suppress(UserError, *CANNOT_RUN):
            return _found(model, every_block=False)
    return _found(model, every_block=True)


def _found(model: ChatModel, *, every_block: bool) -> tuple[Writer, ...]:
    known = None if every_block else _nothing_known(model)
    kinds: dict[Part, Kind] = {}
    found: list[Writer] = []
    shown: Any = None

    def act(layer: int, call: Call) -> Any:
        nonlocal shown
        key = known.key(layer, call) if known else None
        writers = known.taken_over(key, layer) if known else None
        hidden = call.hidden()
        if writers is None:
            name = model.block_names[layer]
            trace, writers = prove_block(model.blocks[layer], call, name=name, layer=layer, d_model=model.d_model, kinds=kinds)
            shown, hidden = trace.output, first_tensor(trace.output).to(hidden.dtype)
            if known:
                known.keep(key, trace, writers)
        found.extend(writers)
        return with_first_tensor(shown, hidden)

    _run_blocks(model, act)
    return tuple(found)


def _nothing_known(model: ChatModel) -> "Known":
    tensors: dict[str, Tensor] = {}
    for kind in (model.network.named_parameters, model.network.named_buffers):
        tensors |= dict(kind(remove_duplicate=False))
    blocks = dict(zip(model.block_names, model.blocks, strict=True))
    return Known(model.network, blocks, d_model=model.d_model, value=tensors.__getitem__)


@dataclass(frozen=True)
class _Gain:
    """Which parameter a gain is, by its name in the network: its value, or 1 + its value."""

    parameter: str
    offset: float


class Known:
    """The writers of the blocks that were proven, for others of the same structure that are called in the same form."""

    def __init__(self, network: nn.Module, blocks: Mapping[str, nn.Module], *, d_model: int, value: Values) -> None:
        self._names, self._value = list(blocks), value
        self._structures = structures(network, blocks, d_model=d_model, value=value)
        self._kept: dict[Hashable, list[tuple[Writer, _Gain | None]]] = {}

    def key(self, layer: int, call: Call) -> Hashable:
        """Return what a block has in common with its like; to be asked before it runs, since blocks leave things in their arguments."""
        return self._structures[layer], form(call, layer=layer)

    def keep(self, key: Hashable, trace: Trace, writers: Sequence[Writer]) -> None:
        """Keep the writers of a proven block, unless they tell nothing of others.

        That is: none at all, a block that weighs each token anew (no edit proof asks such a block for what is missing), a part so faint
        that it may be a writer that does not show, a gain that is no one parameter.
        """
        gains = [self._gain(trace, w) for w in writers]
        unexplained = any(w.gain is not None and g is None for w, g in zip(writers, gains, strict=True))
        if writers and not (unexplained or any(w.mixed for w in writers) or _has_faint_parts(trace)):
            self._kept[key] = list(zip(writers, gains, strict=True))

    def taken_over(self, key: Hashable, layer: int) -> tuple[Writer, ...] | None:
        """Return the writers of a block under its own names and with its own gains, None if the block has to be proven itself."""
        kept = self._kept.get(key)
        return None if kept is None else tuple(self._moved(writer, gain, layer) for writer, gain in kept)

    def _gain(self, trace: Trace, writer: Writer) -> _Gain | None:
        """Return the one parameter that the gain is; None if there is no gain, or none or several that it could be (a product of two)."""
        if writer.gain is None:
            return None
        names = [f"{trace.name}.{n}" for n, p in trace.block.named_parameters() if p.shape == writer.gain.shape]
        values = [(name, value) for name in names if (value := self._value(name)) is not None]
        found = [_Gain(n, offset) for n, v in values for offset in (0.0, 1.0) if torch.equal(_from(v, offset), writer.gain)]
        return found[0] if len(found) == 1 else None

    def _moved(self, writer: Writer, gain: _Gain | None, layer: int) -> Writer:
        def own(name: str) -> str:
            return self._names[layer] + name.removeprefix(writer.proven_in)

        value = None if gain is None else self._value(own(gain.parameter))
        moved = None if gain is None or value is None else _from(value, gain.offset)
        parameters = tuple(replace(p, name=own(p.name)) for p in writer.parameters)
        return replace(writer, name=own(writer.name), module=own(writer.module), layer=layer, parameters=parameters, gain=moved)


def _from(vector: Tensor, offset: float) -> Tensor:
    return (offset + vector.detach().cpu().double()).float()


def _has_faint_parts(trace: Trace) -> bool:
    added = float((trace.after - trace.before).norm())
    return any(float(output.norm()) <= _FAINT * added for output in trace.outputs.values())


def prove_block(
    block: nn.Module, call: Call, *, name: str, layer: int, d_model: int, kinds: dict[Part, Kind] | None = None
) -> tuple[Trace, tuple[Writer, ...]]:
    """Return the trace of one block and its writers, proven complete on a call with two rows of tokens; raises what `find_writers` raises.

    It is proven in the cheap way if that will do, else with every weight in float32. `kinds` remembers which modules mix tokens, by their
    structure: a name for people, which no proof rests on.
    """
    if half_linears(block):
        with suppress(UserError, RuntimeError):  # a block may mix its tensors with weights in ways that take float32 throughout
            trace = trace_block(block, call, name=name, d_model=d_model, narrow=True)
            return trace, decomposed(trace, layer=layer, kinds=kinds)[1]
    trace = trace_block(block, call, name=name, d_model=d_model)
    return trace, decomposed(trace, layer=layer, kinds=kinds)[1]


def decomposed(trace: Trace, *, layer: int, kinds: dict[Part, Kind] | None = None) -> tuple[Decomposition, tuple[Writer, ...]]:
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


def _writer(trace: Trace, source: Source, coefficient: float, found: Decomposition, layer: int, kinds: dict[Part, Kind]) -> Writer:
    top = source.module.split(".")[0]
    top = top if top in trace.calls else source.module
    part = _part(trace.block.get_submodule(top))
    if part not in kinds:
        kinds[part] = "attention" if mixes_tokens(trace, top) else "mlp"
    parameters = tuple(WriterParameter(f"{trace.name}.{source.module}.{p}", layout) for p, layout in source.parameters)
    module = f"{trace.name}.{source.module}"
    return Writer(module, layer, kinds[part], module, source.gain, parameters, coefficient, found.error, found.mixed, trace.name)


def _part(module: nn.Module) -> Part:
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
