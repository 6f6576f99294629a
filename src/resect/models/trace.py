"""One block under the probe: what each of its modules puts out, and which parameters produce a given output."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.errors import UserError
from resect.layout import LAYOUT_OF, OUTPUT_AXIS, Layout
from resect.models.forward import Call, as_float32, first_tensor, float_state, recorded_calls, replay

ROWS = 2  # rows of tokens in a probe
_EQUAL = 1e-6  # relative: the same numbers, up to the rounding of an identity
_LINEAR = 1e-5  # relative: the same numbers computed in another order


@dataclass(frozen=True, eq=False)
class Trace:
    """A block replayed in float32; streams and outputs in float64 on the CPU, names relative to the block.

    `before` and `after` are the residual streams that go in and come out: one, but for blocks that keep several side by side.
    """

    name: str
    block: nn.Module
    before: Float[Tensor, "stream token d_model"]
    after: Float[Tensor, "stream token d_model"]
    calls: dict[str, Call] = field(repr=False)
    inputs: dict[str, Tensor] = field(repr=False)
    outputs: dict[str, Tensor] = field(repr=False)

    def frontiers(self) -> list[list[str]]:
        """Return modules with an output of the stream's shape: the direct children, then one level deeper, down to the leaves.

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
        return found

    def _distinct(self, names: list[str]) -> list[str]:
        kept: list[str] = []
        for name in names:
            if not any(same(self.outputs[name], self.outputs[k]) for k in kept):
                kept.append(name)
        return kept


@dataclass(frozen=True, eq=False)
class Source:
    """Where an output of a block comes from: `module` is hooked, its `parameters` (relative names) are edited."""

    module: str
    gain: Float[Tensor, " d_model"] | None
    parameters: tuple[tuple[str, Layout], ...]


def trace_block(block: nn.Module, call: Call, *, name: str, d_model: int) -> Trace:
    """Return what every module of the block takes in and puts out; modules that run more than once or not at all are left out."""
    modules = {n: m for n, m in block.named_modules() if n}
    start = _streams(call.hidden().float(), d_model)
    with recorded_calls(modules) as record:
        output = replay(block, call)
    tokens = start.shape[1]
    once = {n: runs[0] for n, runs in record.items() if len(runs) == 1}
    outputs = {n: _rows(out, d_model) for n, (_, out) in once.items() if _is_stream(out, tokens, d_model)}
    inputs = {n: _rows(c.hidden(), c.hidden().shape[-1]) for n, (c, _) in once.items() if _has_hidden(c)}
    calls = {n: c for n, (c, _) in once.items()}
    return Trace(name, block, start, _streams(output, d_model), calls, inputs, outputs)


def producers(trace: Trace, part: str) -> Source:
    """Return the module and the parameters behind the output of `part`, going back through norms, scales and dropouts.

    Raises:
        UserError: if no parameters reproduce an edit of the output.
    """
    gain: Tensor | None = None
    origin = part
    for _ in range(4):
        leaf = _linear_leaf(trace, origin)
        if leaf is not None:
            return Source(leaf[0], gain, leaf[1])
        step = _through_scale(trace, origin)
        if step is None:
            break
        origin, own = step
        gain = own if gain is None or own is None else gain * own
    parameters = _responding(trace, origin)
    if not parameters:
        raise UserError(
            f"Module {trace.name}.{origin} ({type(trace.block.get_submodule(origin)).__name__}) writes to the residual stream, but no set "
            "of its parameters reproduces an edit of its output; it cannot be edited exactly, so this architecture is refused."
        )
    return Source(origin, gain, parameters)


def mixes_tokens(trace: Trace, module: str) -> bool:
    """Return whether the output at one token depends on other tokens: attention, recurrence and convolution do, an MLP does not."""
    call = trace.calls[module]
    hidden = call.hidden()
    moved = hidden.clone().float()
    rows = moved.reshape(-1, moved.shape[-1])
    rows[0] = rows[0].flip(0) * 1.5 + rows[-1]
    before = replay(trace.block.get_submodule(module), call)
    after = replay(trace.block.get_submodule(module), call.with_hidden(rows.view(hidden.shape)))
    width = before.shape[-1]
    return not same(_rows(after, width)[1:], _rows(before, width)[1:], tolerance=_LINEAR)


def same(a: Tensor, b: Tensor, *, tolerance: float = _EQUAL) -> bool:
    """Return whether two tensors hold the same numbers, relative to their norm."""
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * float(b.norm())


def _linear_leaf(trace: Trace, origin: str) -> tuple[str, tuple[tuple[str, Layout], ...]] | None:
    """Find a module with the output of `origin` that computes W x + b, in either layout of W."""
    wanted = trace.outputs[origin]
    for name in trace.outputs:
        module = trace.block.get_submodule(name)
        own = dict(module.named_parameters(recurse=False))
        weights = [n for n, p in own.items() if p.ndim == 2]
        if any(True for _ in module.children()) or len(weights) != 1 or not same(trace.outputs[name], wanted):
            continue
        layout = _linear_layout(trace, name, weights[0], own)
        if layout is not None:
            biases: list[tuple[str, Layout]] = [(n, "bias") for n in own if n != weights[0]]
            return name, ((weights[0], layout), *biases)
    return None


def _linear_layout(trace: Trace, name: str, weight: str, own: dict[str, nn.Parameter]) -> Layout | None:
    # On the weight's own device and in float32: this is the one step of the probe that reads whole weights of dense models.
    matrix = as_float32(own[weight])
    x, y = trace.inputs[name].to(matrix), trace.outputs[name]
    offsets = [as_float32(p) for n, p in own.items() if n != weight]
    if len(offsets) > 1 or any(b.shape != y.shape[1:] for b in offsets):
        return None
    layouts: list[tuple[Layout, Tensor]] = [("out_in", matrix.T), ("in_out", matrix)]
    for layout, w in layouts:
        if w.shape == (x.shape[1], y.shape[1]) and same((x @ w + sum(offsets)).cpu().double(), y, tolerance=_LINEAR):
            return layout
    return None


def _through_scale(trace: Trace, origin: str) -> tuple[str, Tensor | None] | None:
    """If `origin` scales tokens and features of another module's output, return that module and the feature gain (None: constant)."""
    x, y = trace.inputs.get(origin), trace.outputs[origin]
    before = [n for n, out in trace.outputs.items() if n != origin and not n.startswith(f"{origin}.") and x is not None and same(out, x)]
    if x is None or x.shape != y.shape or not before:
        return None
    gain = _feature_gain(x, y)
    if gain is None:
        return None
    source = min(before, key=lambda n: n.count("."))
    if same(gain, gain.mean().expand_as(gain), tolerance=_LINEAR):
        return source, None
    return source, _exact_gain(trace.block.get_submodule(origin), gain).float()


def is_gain_of_streams(trace: Trace, module: str) -> bool:
    """Return whether a module only scales tokens and features of a combination of the streams that go into the block."""
    x, y = trace.inputs.get(module), trace.outputs[module]
    if x is None or x.shape != y.shape:
        return False
    basis = trace.before.permute(1, 2, 0)
    numbers = torch.linalg.lstsq(basis, x[..., None], driver="gelsd").solution
    return same((basis @ numbers)[..., 0], x, tolerance=_LINEAR) and _feature_gain(x, y) is not None


def _feature_gain(x: Float[Tensor, "token d_model"], y: Float[Tensor, "token d_model"]) -> Tensor | None:
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
    return gain if same(scale * gain * x, y, tolerance=_LINEAR) else None


def _exact_gain(norm: nn.Module, gain: Tensor) -> Tensor:
    """Return the norm's own weight, or 1 + weight (Gemma), if the fitted gain is that up to a factor: free of fitting error."""
    for parameter in norm.parameters():
        for exact in (parameter.detach().cpu().double(), 1 + parameter.detach().cpu().double()):
            if exact.shape == gain.shape and same(exact / exact.norm(), gain / gain.norm(), tolerance=1e-4):
                return exact
    return gain


def _responding(trace: Trace, origin: str) -> tuple[tuple[str, Layout], ...]:
    """Return the parameters under `origin` that map into its output, by trial: reflect each along a random direction u.

    A parameter maps into the output if reflecting its output axis moves the output along u and nowhere else. Repeated modules (experts
    in a list) are tried together. The result counts only if reflecting all of it reflects the output itself.
    """
    module, call = trace.block.get_submodule(origin), trace.calls[origin]
    state = float_state(module)
    u = torch.randn(trace.before.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = u / u.norm()
    before = trace.outputs[origin]

    def move(parameters: list[tuple[str, Layout]]) -> Tensor:
        edited = {n: _reflected(state[n], layout, u) for n, layout in parameters}
        return _rows(replay(module, call, state=state | edited), len(u)) - before

    found: list[tuple[str, Layout]] = []
    for group in _groups(module, len(u)):
        change = move(group)
        across = change - torch.outer(change @ u, u)
        if float(change.norm()) > _LINEAR * float(before.norm()) and float(across.norm()) <= 1e-3 * float(change.norm()):
            found += group
    exact = bool(found) and same(before + move(found), before - 2 * torch.outer(before @ u, u), tolerance=_LINEAR)
    return tuple(found) if exact else ()


def _groups(module: nn.Module, d_model: int) -> list[list[tuple[str, Layout]]]:
    """Return the (parameter, layout) pairs to try; the same parameter of all modules in a list (experts) is one trial."""
    lists = [f"{name}." for name, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    groups: dict[tuple[str, Layout], list[tuple[str, Layout]]] = {}
    for name, parameter in module.named_parameters():
        for axis, length in enumerate(parameter.shape):
            layout = LAYOUT_OF.get((parameter.ndim, axis))
            if layout is not None and length == d_model:
                groups.setdefault((_pattern(name, lists), layout), []).append((name, layout))
    return list(groups.values())


def _pattern(name: str, lists: list[str]) -> str:
    for prefix in lists:
        if name.startswith(prefix):
            name = prefix + re.sub(r"^\d+", "*", name.removeprefix(prefix))
    return name


def _reflected(value: Tensor, layout: Layout, u: Tensor) -> Tensor:
    last = value.movedim(OUTPUT_AXIS[layout], -1)
    u = u.to(value)
    return (last - 2 * (last @ u)[..., None] * u).movedim(-1, OUTPUT_AXIS[layout]).contiguous()


def _rows(value: Any, width: int) -> Tensor:
    return first_tensor(value).detach().reshape(-1, width).cpu().double()


def _streams(value: Tensor, d_model: int) -> Float[Tensor, "stream token d_model"]:
    """Return hidden states as one stream or, from four axes, as several: [stream, row, token, d_model] or [row, token, stream, d_model]."""
    if value.ndim == 4 and value.shape[1] != ROWS:
        value = value.movedim(2, 0)
    return value.detach().cpu().double().reshape(len(value) if value.ndim == 4 else 1, -1, d_model)


def _is_stream(output: Any, tokens: int, d_model: int) -> bool:
    return (
        isinstance(output, Tensor) and output.is_floating_point() and output.shape[-1:] == (d_model,) and output.numel() == tokens * d_model
    )


def _has_hidden(call: Call) -> bool:
    values = [*call.args, *call.kwargs.values()]
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)
