"""An edit as pure data: for every residual writer the factors U, C and the strength gamma of y' = y - gamma U (C^T y)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from resect.edit.algebra import Preserve, orthonormal_basis, scaled_factors, sequential_factors
from resect.errors import UserError, unknown_name

FORMAT = "resect.edit/2"
READABLE = (FORMAT, "resect.edit/1")
"""Version 1 knew no norm-preserving edits; a reader of it must not take such an edit for a plain one."""

# One gamma per layer; its length is checked by `make_plan`, with a message.
Strengths = Float[Tensor, " strength"] | Mapping[str, Float[Tensor, "..."]]


@runtime_checkable
class WriterLike(Protocol):
    """What a plan needs to know of a residual writer."""

    @property
    def name(self) -> str:
        """Unique name within the model."""
        ...

    @property
    def layer(self) -> int:
        """Index of the block."""
        ...

    @property
    def kind(self) -> str:
        """One of "attention", "mlp" and "embedding"."""
        ...

    @property
    def gain(self) -> Tensor | None:
        """Gain g of the norm between the writer and the residual sum, if there is one."""
        ...


@dataclass(frozen=True, eq=False)
class WriterEdit:
    """The edit y' = y - gamma U (C^T y) of one writer's output; float32 factors on the CPU.

    `preserve` names the norms of the writer's weights that the edit keeps (`algebra.preserving_scales`).
    """

    writer: str
    u: Float[Tensor, "d_model k"]
    c: Float[Tensor, "d_model k"]
    gamma: float
    preserve: Preserve = "nothing"

    def __eq__(self, other: object) -> bool:
        """Equal if writer, strength, kept norms and every entry of the factors are."""
        if not isinstance(other, WriterEdit):
            return NotImplemented
        same = (self.writer, self.gamma, self.preserve) == (other.writer, other.gamma, other.preserve)
        return same and torch.equal(self.u, other.u) and torch.equal(self.c, other.c)

    def __hash__(self) -> int:
        return hash((self.writer, self.gamma))


@dataclass(frozen=True)
class EditPlan:
    """Edits of distinct writers, in the order of the writers; the empty plan changes nothing."""

    edits: tuple[WriterEdit, ...]

    def __post_init__(self) -> None:
        names = [edit.writer for edit in self.edits]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"The edit names writer {twice} twice; give one edit per writer, with all its directions in the factors.")

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the factors by name ("WRITER.u", "WRITER.c") and a JSON-ready description; `from_tensors` is the inverse."""
        tensors = {f"{e.writer}.{side}": getattr(e, side).clone().contiguous() for e in self.edits for side in ("u", "c")}
        entries = [{"writer": e.writer, "gamma": e.gamma, "rank": e.u.shape[1], "preserve": e.preserve} for e in self.edits]
        return tensors, {"format": FORMAT, "edits": entries}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> "EditPlan":
        """Return the plan that `to_tensors` took apart.

        Raises:
            UserError: another format, a missing factor, factors of different shapes or with NaN or infinite entries.
        """
        found = description.get("format")
        if found not in READABLE:
            raise UserError(
                f"An edit description must have format {' or '.join(map(repr, READABLE))}, found {found!r}; write it with resect."
            )
        return cls(tuple(_read(tensors, entry) for entry in description["edits"]))


def make_plan(
    writers: Sequence[WriterLike],
    vectors: Float[Tensor, "layer direction d_model"],
    strengths: Strengths,
    *,
    joint: bool = True,
    preserve: Preserve = "nothing",
    scales: Float[Tensor, "layer direction"] | None = None,
) -> EditPlan:
    """Return the plan that removes gamma times the component along `vectors[layer]` from what every writer adds to the residual stream.

    A writer followed by a norm with gain g adds g * y / rms(y), and <r, g * y> = <g * r, y>, so its factors span g * r (for each
    direction r of its layer); without such a norm they span r. Only here are directions normalised. Joint: U = C = an orthonormal
    basis of that span. Otherwise the directions are removed one after another, in their order. Writers with gamma 0 have no entry.

    Args:
        writers: residual writers, in any order; every `layer` indexes the first axis of `vectors`.
        vectors: directions per layer; layers of strength 0 may hold anything.
        strengths: gamma per layer (0 nothing, 1 removed, 2 reflected), or one such tensor per writer kind.
        joint: whether the directions are orthonormalised together.
        preserve: which norms of the writers' weights are kept.
        scales: factors on gamma, one a direction (1 unless given); with (|r| / reference)^2 an edit is that of vectors not normalised.

    Raises:
        UserError: a zero, NaN or infinite direction (naming the layer), strengths of another length or not finite, an unknown or
            missing writer kind, a writer at a layer without directions.
    """
    layers = vectors.shape[0]
    gammas = _by_kind(writers, strengths, layers)
    edits = []
    for writer in writers:
        if not 0 <= writer.layer < layers:
            raise UserError(f"Writer {writer.name} is at layer {writer.layer}, but there are directions for layers 0 to {layers - 1} only.")
        gamma = float(gammas[writer.kind][writer.layer])
        if gamma != 0:
            own = None if scales is None else scales[writer.layer].detach().cpu()
            edits.append(replace(_edit(writer, vectors[writer.layer], gamma, joint=joint, scales=own), preserve=preserve))
    return EditPlan(tuple(edits))


def removal_plan(writers: Sequence[WriterLike], vectors: Float[Tensor, "direction d_model"], gamma: float) -> EditPlan:
    """Return the plan that removes gamma times the component along the same vectors from what each of these writers adds to the stream.

    This is how embeddings are edited: they lie before every block, so which layer's directions they lose is for the caller to say.
    Raises `UserError` for a zero, NaN or infinite direction.
    """
    return EditPlan(tuple(_edit(writer, vectors, gamma, joint=True) for writer in writers if gamma != 0))


def joined(*plans: EditPlan) -> EditPlan:
    """Return the plan with all edits of plans for different writers; raises `UserError` if two of them edit the same one."""
    return EditPlan(tuple(edit for plan in plans for edit in plan.edits))


def _by_kind(writers: Sequence[WriterLike], strengths: Strengths, layers: int) -> dict[str, Tensor]:
    kinds = {writer.kind for writer in writers}
    gammas = {kind: strengths for kind in kinds} if isinstance(strengths, Tensor) else dict(strengths)
    missing = sorted(kinds - set(gammas))
    if missing:
        raise UserError(
            f"Strengths are given for {_listed(gammas)} but the model also has writers of kind {_listed(missing)}; give 0 to skip them."
        )
    for kind, gamma in gammas.items():
        if len(gamma) != layers:
            raise UserError(f"There are strengths for {len(gamma)} layers and directions for {layers}; give one strength per layer.")
        if not bool(torch.isfinite(gamma).all()):
            raise UserError(f"The strengths for {kind} writers hold NaN or infinite values; every strength must be a finite number.")
    return gammas


def _edit(
    writer: WriterLike,
    directions: Float[Tensor, "direction d_model"],
    gamma: float,
    *,
    joint: bool,
    scales: Float[Tensor, " direction"] | None = None,
) -> WriterEdit:
    directions = directions.detach().cpu().double()
    _check(directions, writer)
    if writer.gain is not None:
        directions = directions * writer.gain.detach().cpu().double()
        _check(directions, writer)
    if joint and scales is None:
        basis = orthonormal_basis(directions)
        return WriterEdit(writer.name, basis, basis, gamma)
    if joint and scales is not None:
        u, c = scaled_factors(directions, scales)
    else:
        u, c = sequential_factors(directions, gamma=gamma, scales=scales)
    return WriterEdit(writer.name, u, c, gamma)


def _check(directions: Float[Tensor, "direction d_model"], writer: WriterLike) -> None:
    norms = directions.norm(dim=1)
    bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
    if bad:
        what = "zero" if norms[bad[0]] == 0 else "not finite"
        of, there = (f" of layer {writer.layer}", f"layer {writer.layer}") if writer.layer >= 0 else ("", "the embeddings")
        raise UserError(
            f"Direction {bad[0]}{of} is {what} and cannot be removed from {writer.name}; set the strength of {there} to 0 or give another "
            "direction."
        )


def _read(tensors: Mapping[str, Tensor], entry: object) -> WriterEdit:
    entry = entry if isinstance(entry, Mapping) else {}
    name, gamma = entry.get("writer"), entry.get("gamma")
    if not isinstance(name, str) or not isinstance(gamma, int | float) or not math.isfinite(gamma):
        raise UserError(f"An entry of the edit needs a writer's name and a finite gamma, found {entry!r:.80}; write the edit again.")
    for key in (f"{name}.u", f"{name}.c"):
        if key not in tensors:
            raise UserError(f"The edit of writer {name} lacks the tensor {key}; the edit file is incomplete, write it again.")
    u, c = tensors[f"{name}.u"].float().cpu(), tensors[f"{name}.c"].float().cpu()
    if u.shape != c.shape or u.ndim != 2:
        raise UserError(f"The factors of writer {name} have shapes {tuple(u.shape)} and {tuple(c.shape)}; both must be [d_model, k].")
    if not bool(torch.isfinite(u).all() and torch.isfinite(c).all()):
        raise UserError(f"The factors of writer {name} hold NaN or infinite values; the edit file is damaged, write it again.")
    return WriterEdit(name, u, c, float(gamma), preserve_of(entry.get("preserve", "nothing")))


def preserve_of(found: object) -> Preserve:
    """Return a name as one of the kinds of norm preservation; raises `UserError` for another."""
    for allowed in get_args(Preserve):
        if found == allowed:
            return allowed
    raise unknown_name("kind of norm preservation", str(found), get_args(Preserve))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
