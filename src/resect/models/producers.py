"""Which parameters produce a given output inside a block, and through which norm: found by numbers, proven by an edit of them."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.errors import UserError
from resect.layout import LAYOUT_OF, OUTPUT_AXIS, Layout
from resect.models.decompose import TOLERANCE, fit_sum
from resect.models.forward import is_plain_linear, replay
from resect.models.trace import LINEAR, Trace, feature_gain, rows_of, same

_CHECKED = 4  # tokens on which a module is seen to be linear
_FEATURES = 16  # outputs on which a layer that is linear by its class is seen to be
_DEEPEST = 4  # norms and scales between a writer and the residual sum


@dataclass(frozen=True, eq=False)
class Source:
    """Where an output of a block comes from: `module` is hooked, its `parameters` (relative names) are edited."""

    module: str
    gain: Float[Tensor, " d_model"] | None
    parameters: tuple[tuple[str, Layout], ...]


def producers(trace: Trace, part: str) -> tuple[Source, ...]:
    """Return the modules and parameters behind the output of `part`, going back through norms, scales, dropouts and sums before a norm.

    Raises:
        UserError: if no parameters reproduce an edit of the output.
    """
    return _producers(trace, part, None, _DEEPEST)


def _producers(trace: Trace, part: str, gain: Tensor | None, depth: int) -> tuple[Source, ...]:
    leaf = _linear_leaf(trace, part)
    if leaf is not None:
        return (Source(leaf[0], gain, leaf[1]),)
    step = _through_scale(trace, part) if depth else None
    if step is not None:
        sources, own = step
        gain = own if gain is None or own is None else gain * own
        return tuple(found for source in sources for found in _producers(trace, source, gain, depth - 1))
    parameters = _responding(trace, part)
    if not parameters:
        raise UserError(
            f"Module {trace.name}.{part} ({type(trace.block.get_submodule(part)).__name__}) writes to the residual stream, but no set "
            "of its parameters reproduces an edit of its output; it cannot be edited exactly, so this architecture is refused."
        )
    return (Source(part, gain, parameters),)


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
    module, x, y = trace.block.get_submodule(name), trace.taken_in(name), trace.outputs[name]
    if x is None:
        return None
    if is_plain_linear(module):
        return "out_in" if _seen_linear(module, x, y) else None
    # On the weight's own device, every output feature, few tokens: whole weights are read here.
    state = trace.state_of(name)
    matrix = state[weight]
    x, y = x[:_CHECKED].to(matrix), y[:_CHECKED]
    offsets = [state[n] for n in own if n != weight]
    if len(offsets) > 1 or any(b.shape != y.shape[1:] for b in offsets):
        return None
    layouts: list[tuple[Layout, Tensor]] = [("out_in", matrix.T), ("in_out", matrix)]
    for layout, w in layouts:
        if w.shape == (x.shape[1], y.shape[1]) and same((x @ w + sum(offsets)).cpu().double(), y, tolerance=LINEAR):
            return layout
    return None


def _seen_linear(layer: nn.Linear, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_model"]) -> bool:
    """Return whether the output is W x + b in the features looked at: the others follow, for the layer has no other code than that."""
    step = max(1, y.shape[1] // _FEATURES)
    rows = layer.weight.detach()[::step]
    expected = x.to(rows).float() @ rows.float().T
    if layer.bias is not None:
        expected += layer.bias.detach()[::step].float()
    rounding = torch.finfo(rows.dtype).eps  # of the output, where the layer multiplied in half precision
    return same(expected.cpu().double(), y[:, ::step], tolerance=max(LINEAR, rounding))


def _through_scale(trace: Trace, part: str) -> tuple[list[str], Tensor | None] | None:
    """If a module with the output of `part` scales tokens and features of what others put out, return these and the feature gain.

    The gain is None where all features are scaled alike.
    """
    for name in sorted(trace.outputs, key=lambda n: -n.count(".")):
        y = trace.outputs[name]
        x = trace.taken_in(name) if same(y, trace.outputs[part]) else None
        if x is None or x.shape != y.shape or same(x, y):
            continue
        gain = feature_gain(x, y)
        sources = _summed(trace, x, scale=name) if gain is not None else []
        if gain is not None and sources:
            alike = same(gain, gain.mean().expand_as(gain), tolerance=LINEAR)
            return sources, None if alike else _exact_gain(trace.block.get_submodule(name), gain).float()
    return None


def _summed(trace: Trace, x: Float[Tensor, "token d_model"], *, scale: str) -> list[str]:
    """Return the module whose output goes into `scale`, or those whose outputs add up to it."""
    outputs = {n: out for n, out in trace.outputs.items() if n != scale and not n.startswith(f"{scale}.")}
    whole = [n for n, out in outputs.items() if same(out, x)]
    if whole:
        return [min(whole, key=lambda n: n.count("."))]
    for candidates in trace.frontiers():
        coefficients, error = fit_sum(x, {n: outputs[n] for n in candidates if n in outputs})
        if error <= TOLERANCE:
            return list(coefficients)
    return []


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
    state = trace.state_of(origin)
    u = torch.randn(trace.before.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = u / u.norm()
    # Reflections are told from rounding in float32 only.
    before = rows_of(replay(module, call, state=state), len(u)) if trace.halves else trace.outputs[origin]

    def move(parameters: list[tuple[str, Layout]]) -> Tensor:
        edited = {n: _reflected(state[n], layout, u) for n, layout in parameters}
        return rows_of(replay(module, call, state=state | edited), len(u)) - before

    found: list[tuple[str, Layout]] = []
    for group in _groups(module, len(u)):
        change = move(group)
        across = change - torch.outer(change @ u, u)
        if float(change.norm()) > LINEAR * float(before.norm()) and float(across.norm()) <= 1e-3 * float(change.norm()):
            found += group
    exact = bool(found) and same(before + move(found), before - 2 * torch.outer(before @ u, u), tolerance=LINEAR)
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
