"""One block under the probe: what each of its modules takes in and puts out, in float32."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.models.forward import (
    Call,
    as_float32,
    first_tensor,
    float_state,
    half_linears,
    half_products,
    recorded_calls,
    replay,
    rerun,
    streams,
)

ROWS = 2  # rows of tokens in a probe
_EQUAL = 1e-6  # relative: the same numbers, up to the rounding of an identity
LINEAR = 1e-5  # relative: the same numbers computed in another order


@dataclass(frozen=True, eq=False)
class Trace:
    """A block replayed in float32; streams and outputs in float64 on the CPU, names relative to the block.

    `before` and `after` are the residual streams that go in and come out: one, but for blocks that keep several side by side. `output` is
    all that the block put out. `halves` are the linear layers that multiplied in half precision; `state` has all other tensors in float32.
    """

    name: str
    block: nn.Module
    before: Float[Tensor, "stream token d_model"]
    after: Float[Tensor, "stream token d_model"]
    calls: dict[str, Call] = field(repr=False)
    outputs: dict[str, Tensor] = field(repr=False)
    state: dict[str, Tensor] = field(repr=False)
    output: Any = field(repr=False)
    halves: dict[str, nn.Linear] = field(repr=False)

    def state_of(self, module: str, *, without: Iterable[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of a module in float32, by their names in it; `without` names modules of the block to leave out."""
        own, left = self.block.get_submodule(module), tuple(f"{name}." for name in without)
        named = {f"{module}.{n}": (n, v) for n, v in [*own.named_parameters(), *own.named_buffers()]}
        return {n: self.state[full] if full in self.state else as_float32(v) for full, (n, v) in named.items() if not full.startswith(left)}

    def taken_in(self, module: str) -> Float[Tensor, "token d_in"] | None:
        """Return the hidden states that went into a module, None if it takes none."""
        call = self.calls[module]
        return rows_of(call.hidden(), call.hidden().shape[-1]) if _has_hidden(call) else None

    def replay(self, module: str, call: Call) -> Tensor:
        """Return the main output of a module for another call of it, computed as in the trace."""
        halves = [layer for name, layer in self.halves.items() if f"{name}.".startswith(f"{module}.")]
        with half_products(halves):
            return replay(self.block.get_submodule(module), call, state=self.state_of(module, without=self.halves))

    def frontiers(self) -> Iterator[list[str]]:
        """Yield modules with an output of the stream's shape: the direct children, then one level deeper, down to the leaves.

        A module without children stays on every level below its own. Of modules with equal outputs (dropout at evaluation) the first.
        """
        levels = {name: name.count(".") for name, _ in self.block.named_modules() if name}
        leaf = {name: next(self.block.get_submodule(name).children(), None) is None for name in levels}
        found: list[list[str]] = []
        for depth in range(max(levels.values(), default=0) + 1):
            here = [n for n, level in levels.items() if n in self.outputs and (level == depth or (leaf[n] and level < depth))]
            here = self._distinct(here)
            if here not in found:
                found.append(here)
                yield here

    def _distinct(self, names: list[str]) -> list[str]:
        kept: list[str] = []
        for name in names:
            if not any(same(self.outputs[name], self.outputs[k]) for k in kept):
                kept.append(name)
        return kept


def trace_block(block: nn.Module, call: Call, *, name: str, d_model: int, narrow: bool = False) -> Trace:
    """Return what every module of the block takes in and puts out; modules that run more than once or not at all are left out.

    `narrow` lets linear layers multiply in the checkpoint's half precision, which is several times cheaper. Their outputs are rounded
    then, but what the block makes of the outputs is not, so that sums are told as exactly.
    """
    modules = {n: m for n, m in block.named_modules() if n}
    halves = half_linears(block) if narrow else {}
    start, state = _streams(call.hidden().float(), d_model), float_state(block, without=halves)
    with half_products(halves.values()), recorded_calls(modules) as record:
        output = rerun(block, call, state=state)
    tokens = start.shape[1]
    once = {n: runs[0] for n, runs in record.items() if len(runs) == 1}
    outputs = {n: rows_of(out, d_model) for n, (_, out) in once.items() if _is_stream(out, tokens, d_model)}
    calls = {n: c for n, (c, _) in once.items()}
    return Trace(name, block, start, _streams(first_tensor(output), d_model), calls, outputs, state, output, halves)


def mixes_tokens(trace: Trace, module: str) -> bool:
    """Return whether the output at one token depends on other tokens: attention, recurrence and convolution do, an MLP does not."""
    call = trace.calls[module]
    hidden = call.hidden()
    moved = hidden.clone().float()
    rows = moved.reshape(-1, moved.shape[-1])
    rows[0] = rows[0].flip(0) * 1.5 + rows[-1]
    after = trace.replay(module, call.with_hidden(rows.view(hidden.shape)))
    width = after.shape[-1]
    before = trace.outputs[module] if module in trace.outputs else rows_of(trace.replay(module, call), width)
    return not same(rows_of(after, width)[1:], before[1:], tolerance=LINEAR)


def same(a: Tensor, b: Tensor, *, tolerance: float = _EQUAL) -> bool:
    """Return whether two tensors hold the same numbers, relative to their norm."""
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * float(b.norm())


def rows_of(value: Any, width: int) -> Tensor:
    """Return a module's main output as [token, width] in float64 on the CPU."""
    return first_tensor(value).detach().reshape(-1, width).cpu().double()


def feature_gain(x: Float[Tensor, "token d_model"], y: Float[Tensor, "token d_model"]) -> Tensor | None:
    """Return g with y[t, i] = s[t] g[i] x[t, i] for some s, None if there is none: alternating least squares, started at RMS."""
    some = x.norm(dim=1) > 0  # sparse activations leave tokens with nothing
    if bool(y[~some].any()) or not bool(some.any()):
        return None
    x, y = x[some], y[some]
    scale = x.square().mean(1, keepdim=True).rsqrt()
    gain = torch.ones_like(x[0])
    for _ in range(50):
        gain = ((scale * x) * y).sum(0) / (scale * x).square().sum(0)
        scale = ((gain * x) * y).sum(1, keepdim=True) / (gain * x).square().sum(1, keepdim=True)
    return gain if same(scale * gain * x, y, tolerance=LINEAR) else None


def _streams(value: Tensor, d_model: int) -> Float[Tensor, "stream token d_model"]:
    return streams(value, d_model, (ROWS,)).detach().cpu().double().flatten(1, -2)


def _is_stream(output: Any, tokens: int, d_model: int) -> bool:
    return (
        isinstance(output, Tensor) and output.is_floating_point() and output.shape[-1:] == (d_model,) and output.numel() == tokens * d_model
    )


def _has_hidden(call: Call) -> bool:
    values = [*call.args, *call.kwargs.values()]
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)
