"""Which outputs of a block's modules make up what it adds to the residual stream: least squares on some tokens, proof on others.

Two forms are tried. Added: output - input = sum of c y, one number c per module. Mixed, for blocks with several residual streams or with
scalar gates: at each token every output stream is a combination, with numbers of its own, of the input streams and of y. Both are read
from the outermost modules first, then from those inside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError
from resect.models.trace import LINEAR, Trace, feature_gain, same

TOLERANCE = 1e-4  # of what the block adds, in float32: two orders above rounding, far below any real part of the sum
_SHARE = 1e-5  # a module with a smaller share of the sum than this is not part of it
_SHARE_MIXED = 3e-5  # the same where each token has its own numbers, which are fitted less well
_COLUMNS = 0.75  # of d_model: with more columns than this a combination of them proves nothing


@dataclass(frozen=True)
class Decomposition:
    """Modules of a block with their coefficients, and the relative error on fresh tokens.

    `mixed`: the coefficients differ from token to token, and their mean size is given; what the block carries over from its input
    (`carried`: modules that only scale input streams, beside the streams themselves) is no part of what it adds.
    """

    coefficients: dict[str, float]
    error: float
    mixed: bool = False
    carried: tuple[str, ...] = ()


def decompositions(trace: Trace) -> Iterator[Decomposition]:
    """Yield every way to write the block's output that holds to `TOLERANCE`, the simplest first.

    Raises:
        UserError: at the end if there was none (naming the block and the gap), at once for NaN or infinity.
    """
    kind = type(trace.block).__name__
    if not bool(torch.isfinite(trace.after).all()):
        raise UserError(
            f"Block {trace.name} ({kind}) puts out NaN or infinity for ordinary tokens, even in float32; nothing can "
            "be measured with such weights, get the checkpoint again."
        )
    if torch.equal(trace.after, trace.before):
        yield Decomposition({}, 0.0)
        return
    gaps = []
    forms = (_added, _mixed) if len(trace.before) == 1 else (_mixed,)
    for form in forms:
        for candidates in trace.frontiers():
            found = form(trace, candidates)
            gaps.append(found.error)
            if found.error <= TOLERANCE:
                yield found
    if min(gaps) > TOLERANCE:
        raise UserError(
            f"Block {trace.name} ({kind}) adds something to the residual stream that the outputs of its parts do not "
            f"explain: relative gap {min(gaps):.1e}, allowed {TOLERANCE:.0e}; an edit would miss it, so this architecture is refused."
        )


def _added(trace: Trace, candidates: list[str]) -> Decomposition:
    return Decomposition(*fit_sum((trace.after - trace.before)[0], {name: trace.outputs[name] for name in candidates}))


def fit_sum(target: Float[Tensor, "token d_model"], columns: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """Return the columns that make up the target with one coefficient each, and the relative error on the half that was not fitted."""
    # Tokens weigh the same however large they are: a few with huge activations would otherwise hide the others.
    half, weight = len(target) // 2, 1 / target.norm(dim=1, keepdim=True).clamp_min(1e-30)
    target = target * weight
    columns = {name: c * weight for name, c in columns.items() if float(c[:half].norm()) > 0}
    coefficients = _least_squares(target[:half], {n: c[:half] for n, c in columns.items()})
    scale = float(target[:half].norm())
    used = {n: columns[n] for n, k in coefficients.items() if abs(k) * float(columns[n][:half].norm()) > _SHARE * scale}
    if len(used) < len(columns):
        coefficients = _least_squares(target[:half], {n: c[:half] for n, c in used.items()})
    gap = target[half:] - sum((k * used[n][half:] for n, k in coefficients.items()), start=torch.zeros_like(target[half:]))
    return coefficients, float(gap.norm() / target[half:].norm())


def _least_squares(target: Float[Tensor, "token d_model"], columns: dict[str, Tensor]) -> dict[str, float]:
    if not columns:
        return {}
    matrix = torch.stack([c.flatten() / c.norm() for c in columns.values()], dim=1)
    # Long and narrow: first turned square, then solved with singular values, since columns may depend on one another.
    q, r = torch.linalg.qr(matrix)
    solution = torch.linalg.lstsq(r, q.T @ target.flatten()[:, None], driver="gelsd").solution.flatten()
    values = [float(s / c.norm()) for s, c in zip(solution, columns.values(), strict=True)]
    return {n: 1.0 if abs(k - 1) < _SHARE else k for n, k in zip(columns, values, strict=True)}


def _mixed(trace: Trace, candidates: list[str]) -> Decomposition:
    """Fit every token on its own: a handful of vectors spans another of a wide stream only if that is made of them, so this is proof."""
    names = _independent(trace, candidates)
    if not names or len(names) + len(trace.before) > _COLUMNS * trace.before.shape[2]:
        return Decomposition({}, float("inf"))
    parts, _ = combination(trace, names)
    scale = float(trace.after.norm())
    names = [n for n in names if float(parts[n].norm()) > _SHARE_MIXED * scale]
    parts, gap = combination(trace, names)
    sizes = {n: float(parts[n].norm() / (trace.outputs[n].norm() * len(trace.after) ** 0.5)) for n in names}
    carried = tuple(n for n in names if _is_gain_of_streams(trace, n))
    added = sum((parts[n] for n in names if n not in carried), start=torch.zeros_like(gap))
    error = float(gap.norm() / added.norm()) if float(added.norm()) > 0 else float("inf")
    return Decomposition({n: k for n, k in sizes.items() if n not in carried}, error, mixed=True, carried=carried)


def added(trace: Trace, found: Decomposition) -> Float[Tensor, "stream token d_model"]:
    """Return what the block adds to each stream: its output less all that it carries over from its input."""
    if not found.mixed:
        return trace.after - trace.before
    parts, gap = combination(trace, [*found.coefficients, *found.carried])
    return sum((parts[n] for n in found.coefficients), start=gap)


def combination(trace: Trace, names: list[str]) -> tuple[dict[str, Tensor], Float[Tensor, "stream token d_model"]]:
    """Return each module's part of the output streams, fitted token by token beside the input streams, and what is left over."""
    columns = torch.cat([trace.before, torch.stack([trace.outputs[n] for n in names])] if names else [trace.before])
    matrix = columns.permute(1, 2, 0)
    norms = matrix.norm(dim=1, keepdim=True).clamp_min(1e-30)
    target = trace.after.permute(1, 2, 0)
    numbers = torch.linalg.lstsq(matrix / norms, target, driver="gelsd").solution / norms.movedim(1, 2)
    parts = {
        name: (trace.outputs[name][..., None] * numbers[:, None, len(trace.before) + i]).permute(2, 0, 1) for i, name in enumerate(names)
    }
    return parts, (target - matrix @ numbers).permute(2, 0, 1)


def _is_gain_of_streams(trace: Trace, module: str) -> bool:
    """Return whether a module only scales tokens and features of a combination of the streams that go into the block."""
    x, y = trace.taken_in(module), trace.outputs[module]
    if x is None or x.shape != y.shape:
        return False
    basis = trace.before.permute(1, 2, 0)
    numbers = torch.linalg.lstsq(basis, x[..., None], driver="gelsd").solution
    return same((basis @ numbers)[..., 0], x, tolerance=LINEAR) and feature_gain(x, y) is not None


def _independent(trace: Trace, candidates: list[str]) -> list[str]:
    """Leave out modules whose output points at every token where another's does (a norm of constant gain), or is zero."""
    kept: dict[str, Tensor] = {}
    for name in candidates:
        unit = torch.nn.functional.normalize(trace.outputs[name], dim=1)
        if float(unit.norm()) > 0 and not any(same(unit, k) or same(-unit, k) for k in [*kept.values(), *_units(trace.before)]):
            kept[name] = unit
    return list(kept)


def _units(streams: Tensor) -> list[Tensor]:
    return list(torch.nn.functional.normalize(streams, dim=2))
