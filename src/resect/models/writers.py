"""Residual writers: the modules of a block whose outputs add up to what the block adds to the residual stream.

Nothing here knows a module by its name. A short probe with random tokens records what every module of a block puts out, least squares
finds which outputs (with which coefficient) make up the block's output minus its input, and fresh tokens prove that nothing is missing.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.errors import UserError
from resect.layout import Layout
from resect.models.forward import Call, model_inputs, recorded_calls, run_until
from resect.models.load import ChatModel
from resect.models.trace import Trace, mixes_tokens, producers, trace_block

Kind = Literal["attention", "mlp", "embedding"]

TOLERANCE = 1e-4  # of what the block adds, in float32: two orders above rounding, far below any real part of the sum
_SHARE = 1e-5  # a module with a smaller share of the sum than this is not part of it
_ROWS, _TOKENS = 2, 16  # the first row is fitted, the second is the proof


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
    `error` is the relative error of the completeness proof of the block.
    """

    name: str
    layer: int
    kind: Kind
    module: str
    gain: Float[Tensor, " d_model"] | None
    parameters: tuple[WriterParameter, ...]
    coefficient: float = 1.0
    error: float = 0.0


def find_writers(model: ChatModel) -> tuple[Writer, ...]:
    """Return every residual writer of the text decoder, block by block, proven complete.

    For each block the sum over writers of coefficient * output equals output - input on tokens that took no part in the search, to a
    relative error of `TOLERANCE`, and every writer's parameters reproduce an edit of its output. Computed in float32, block by block,
    whatever the dtype of the checkpoint. The model is not changed.

    Raises:
        UserError: a block whose parts do not add up (naming the block and the gap), a writer whose parameters cannot be found, a
            block that runs more than once per pass, weights that are quantised or not loaded.
    """
    _check_weights(model)
    calls = enumerate(_block_calls(model))
    return tuple(w for layer, (name, block, call) in calls for w in block_writers(name, block, call, layer=layer, d_model=model.d_model))


def block_writers(name: str, block: nn.Module, call: Call, *, layer: int, d_model: int) -> tuple[Writer, ...]:
    """Return the writers of one block, proven complete on a call of it with two rows of tokens; raises what `find_writers` raises."""
    trace = trace_block(block, call, name=name, d_model=d_model)
    coefficients, error = _decompose(trace)
    return tuple(_writer(trace, part, coefficient, layer=layer, error=error) for part, coefficient in coefficients.items())


def _writer(trace: Trace, part: str, coefficient: float, *, layer: int, error: float) -> Writer:
    source = producers(trace, part)
    top = source.module.split(".")[0]
    kind: Kind = "attention" if mixes_tokens(trace, top if top in trace.calls else source.module) else "mlp"
    parameters = tuple(WriterParameter(f"{trace.name}.{source.module}.{p}", layout) for p, layout in source.parameters)
    module = f"{trace.name}.{source.module}"
    return Writer(module, layer, kind, module, source.gain, parameters, coefficient, error)


def _decompose(trace: Trace) -> tuple[dict[str, float], float]:
    """Return the parts of a block's sum with their coefficients, and the error on fresh tokens: direct children, else leaves."""
    if not bool(torch.isfinite(trace.delta).all()):
        raise UserError(
            f"Block {trace.name} ({type(trace.block).__name__}) puts out NaN or infinity for ordinary tokens, even in float32; nothing can "
            "be measured with such weights, get the checkpoint again."
        )
    if float(trace.delta.norm()) == 0:
        return {}, 0.0
    errors = []
    for candidates in (trace.children(), trace.leaves()):
        coefficients, error = _fit(trace, candidates)
        if error <= TOLERANCE:
            return coefficients, error
        errors.append(error)
    raise UserError(
        f"Block {trace.name} ({type(trace.block).__name__}) adds something to the residual stream that the outputs of its parts do not "
        f"explain: relative gap {min(errors):.1e}, allowed {TOLERANCE:.0e}; an edit would miss it, so this architecture is refused."
    )


def _fit(trace: Trace, candidates: list[str]) -> tuple[dict[str, float], float]:
    # Tokens weigh the same however large they are: a few with huge activations would otherwise hide the others.
    half = trace.delta.shape[0] // _ROWS
    weight = 1 / trace.delta.norm(dim=1, keepdim=True).clamp_min(1e-30)
    target = trace.delta * weight
    columns = {name: trace.outputs[name] * weight for name in candidates}
    columns = {name: c for name, c in columns.items() if float(c[:half].norm()) > 0}
    coefficients = _least_squares(target[:half], {n: c[:half] for n, c in columns.items()})
    scale = float(target[:half].norm())
    used = {n: columns[n] for n, k in coefficients.items() if abs(k) * float(columns[n][:half].norm()) > _SHARE * scale}
    coefficients = _least_squares(target[:half], {n: c[:half] for n, c in used.items()})
    gap = target[half:] - sum((k * used[n][half:] for n, k in coefficients.items()), start=torch.zeros_like(target[half:]))
    return coefficients, float(gap.norm() / target[half:].norm())


def _least_squares(target: Float[Tensor, "token d_model"], columns: dict[str, Tensor]) -> dict[str, float]:
    if not columns:
        return {}
    matrix = torch.stack([c.flatten() / c.norm() for c in columns.values()], dim=1)
    solution = torch.linalg.lstsq(matrix, target.flatten()[:, None], driver="gelsd").solution.flatten()
    values = [float(s / c.norm()) for s, c in zip(solution, columns.values(), strict=True)]
    return {n: 1.0 if abs(k - 1) < _SHARE else k for n, k in zip(columns, values, strict=True)}


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
    allowed = torch.tensor([i for i in range(vocab) if i not in roles and i not in model.end_ids])
    picks = torch.randint(len(allowed), (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
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
