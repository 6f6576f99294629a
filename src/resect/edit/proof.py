"""The edit proof: what an edit did to every writer and to the residual stream, measured on probe tokens beside what it should have done.

It never asks how the edit was applied. Each writer gets the very inputs that it has in the base model, and what it puts out before and
after is compared; each block is asked what it adds to the stream along the removed directions. Hooks, baked weights and adapters are
therefore proven alike.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.edit.algebra import apply_to_output, orthonormal_basis
from resect.edit.bake import Untouched, edited_weight
from resect.edit.hooks import applied, matched
from resect.edit.plan import EditPlan, WriterEdit, removal_plan
from resect.models.embeddings import embedding_names, outside_decoder, tied_head
from resect.models.forward import Call, float_state, recorded_calls, replay
from resect.models.load import ChatModel
from resect.models.writers import Writer, probe_inputs

FORMAT = "resect.edit_proof/1"
FILE = "edit_proof.json"
TOLERANCE = 1e-3
"""Largest gap between measured and expected, as a share of the writer's output, in float32."""
HALF_TOLERANCE = 3e-2
"""The same where the weights are stored in half precision, whose rounding is part of what is measured."""

_ROUNDING = torch.finfo(torch.float32).eps  # of the stream before and after a block, whose difference is what the block adds
_NOTHING = 1e-6  # a smaller share of an output than this along a direction is rounding, and no ratio of it means anything


@dataclass(frozen=True)
class WriterProof:
    """One edited writer on the inputs it has in the base model, all as Frobenius norms over probe tokens.

    `change` is |Y' - Y| / |Y| and `left`, for each direction c that the edit reads, |Y' c| / |Y c|. `gap` is |Y' - expected Y'| / |Y|:
    whatever moved besides what should have. `leak` is what is left above |1 - gamma|: 0 up to rounding, more where row norms are kept.
    """

    writer: str
    layer: int
    kind: str
    gamma: float
    rank: int
    preserve: str
    expected_change: float
    change: float
    expected_left: tuple[float, ...]
    left: tuple[float, ...]
    leak: float
    gap: float


@dataclass(frozen=True)
class BlockProof:
    """What one block with edited writers adds to the stream along the directions removed there, in the running model.

    `added_before` and `added_after` are shares of what the block adds; `stream_before` and `stream_after` shares of the stream after it.
    `unlisted` is the share of the block's component that is still added when every writer known of it is stripped of the directions, less
    what float32 rounds of the stream: 0 unless something writes that is not listed (not told in mixed blocks, where it is 0).
    """

    layer: int
    added_before: float
    added_after: float
    stream_before: float
    stream_after: float
    unlisted: float


@dataclass(frozen=True)
class Proof:
    """The whole proof; `faults` are sentences, none of them if the edit did what it should and nothing else."""

    writers: tuple[WriterProof, ...]
    blocks: tuple[BlockProof, ...]
    untouched: tuple[Untouched, ...]
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that `edit_proof.json` holds."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Observation:
    """The base model on probe tokens: for every edited writer its call, its outputs and those that the plan asks for; block updates."""

    calls: dict[str, Call]
    outputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    updates: dict[int, tuple[Tensor, Tensor]]


def observe(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> Observation:
    """Return what `prove` compares with; to be taken before the edit is applied. Raises `UserError` if the plan does not fit the model."""
    edits = matched(writers, plan, d_model=model.d_model)
    layers = _edited_layers(edits)
    calls = _record(model, [writer.module for writer, _ in edits] + [model.block_names[layer] for layer in layers])
    outputs, expected = {}, {}
    for writer, edit in edits:
        module = model.network.get_submodule(writer.module)
        outputs[writer.name] = _rows(replay(module, calls[writer.module]))
        expected[writer.name] = _expected(model, writer, edit, calls[writer.module], outputs[writer.name])
    return Observation(calls, outputs, expected, {layer: _update(model, layer, calls[model.block_names[layer]]) for layer in layers})


def prove(model: ChatModel, writers: Sequence[Writer], plan: EditPlan, *, before: Observation) -> Proof:
    """Return the proof of a plan for a model as it is now: edited by hooks, by baked weights or by an adapter.

    `writers` are all that are known of the model, `before` is the base model's `observe` for the same plan.
    """
    edits = matched(writers, plan, d_model=model.d_model)
    found = tuple(_writer_proof(model, writer, edit, before) for writer, edit in edits)
    layers = _edited_layers(edits)
    calls = _record(model, [model.block_names[layer] for layer in layers])
    blocks = tuple(_block_proof(model, writers, edits, layer, calls[model.block_names[layer]], before) for layer in layers)
    faults = (*_faults(model, found, blocks), *_unknown_blocks(model, writers))
    return Proof(found, blocks, _untouched(model, writers, plan), faults)


def _expected(model: ChatModel, writer: Writer, edit: WriterEdit, call: Call, y: Tensor) -> Tensor:
    """Return the outputs that the edit asks for: by the formula, or from edited weights where norms are kept."""
    if edit.preserve == "nothing":
        return apply_to_output(y, u=edit.u.double(), c=edit.c.double(), gamma=edit.gamma)
    module = model.network.get_submodule(writer.module)
    state = float_state(module)
    for described in writer.parameters:
        name = described.name.removeprefix(f"{writer.module}.")
        state[name] = edited_weight(state[name], described.layout, edit)
    return _rows(replay(module, call, state=state))


def _writer_proof(model: ChatModel, writer: Writer, edit: WriterEdit, before: Observation) -> WriterProof:
    y, expected = before.outputs[writer.name], before.expected[writer.name]
    after = _rows(replay(model.network.get_submodule(writer.module), before.calls[writer.module]))
    left = _left(after, y, edit.c)
    return WriterProof(
        writer=writer.name,
        layer=writer.layer,
        kind=writer.kind,
        gamma=edit.gamma,
        rank=edit.u.shape[1],
        preserve=edit.preserve,
        expected_change=_share(expected - y, y),
        change=_share(after - y, y),
        expected_left=_left(expected, y, edit.c),
        left=left,
        leak=max(0.0, max(left, default=0.0) - abs(1 - edit.gamma)),
        gap=_share(after - expected, y),
    )


def _block_proof(
    model: ChatModel,
    writers: Sequence[Writer],
    edits: Sequence[tuple[Writer, WriterEdit]],
    layer: int,
    call: Call,
    before: Observation,
) -> BlockProof:
    basis = _stream_directions([(writer, edit) for writer, edit in edits if writer.layer == layer])
    start, update = before.updates[layer]
    now, after = _update(model, layer, call)
    with applied(model, writers, removal_plan([w for w in writers if w.layer == layer], basis.T, 1.0)):
        _, stripped = _update(model, layer, call)
    component = float((update @ basis).norm())
    beyond = float((stripped @ basis).norm()) - _ROUNDING * float(start.norm() + update.norm())
    # A mixed block carries over what it does not write, so what is left of its component says nothing of a missed writer.
    told = component > _NOTHING * float(update.norm()) and not any(w.mixed for w in writers if w.layer == layer)
    return BlockProof(
        layer=layer,
        added_before=_share(update @ basis, update),
        added_after=_share(after @ basis, after),
        stream_before=_share((start + update) @ basis, start + update),
        stream_after=_share((now + after) @ basis, now + after),
        unlisted=0.0 if not told or beyond < 0 else beyond / component,  # NaN stays NaN, and is a fault
    )


def _stream_directions(edits: Sequence[tuple[Writer, WriterEdit]]) -> Float[Tensor, "d_model k"]:
    """Return an orthonormal basis of what the edits of a block read, in the stream: <c, y> = <c / g, g * y> behind a norm with gain g."""
    read = []
    for writer, edit in edits:
        gain = torch.ones(len(edit.c)) if writer.gain is None else writer.gain.detach().cpu()
        read.append(torch.where(gain[:, None] != 0, edit.c / gain[:, None], 0.0).T)
    return orthonormal_basis(torch.cat(read), tolerance=1e-3).double()


def _edited_layers(edits: Sequence[tuple[Writer, WriterEdit]]) -> list[int]:
    return sorted({writer.layer for writer, _ in edits if writer.layer >= 0})


def _record(model: ChatModel, names: Sequence[str]) -> dict[str, Call]:
    """Run the probe tokens once and return how each module was called."""
    with torch.no_grad(), recorded_calls({name: model.network.get_submodule(name) for name in names}) as record:
        model.network(**probe_inputs(model))
    return {name: calls[0][0] for name, calls in record.items()}


def _update(model: ChatModel, layer: int, call: Call) -> tuple[Tensor, Tensor]:
    """Return the input of a block and what the block adds to it, [token, d_model], computed in float32."""
    start = _rows(call.hidden().float())
    return start, _rows(replay(model.blocks[layer], call)) - start


def _rows(value: Tensor) -> Tensor:
    return value.detach().reshape(-1, value.shape[-1]).cpu().double()


def _share(part: Tensor, whole: Tensor) -> float:
    norm, own = float(whole.norm()), float(part.norm())
    return own / norm if norm else float("inf") if own else 0.0


def _left(after: Tensor, before: Tensor, c: Tensor) -> tuple[float, ...]:
    was, now = ((value @ c.double()).norm(dim=0) for value in (before, after))
    floor = _NOTHING * float(before.norm())
    return tuple(float(b / a) if float(a) > floor else 0.0 for a, b in zip(was, now, strict=True))


def _untouched(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> tuple[Untouched, ...]:
    edited = {edit.writer for edit in plan.edits}
    rest = [Untouched(w.name, f"strength 0 at layer {w.layer}") for w in writers if w.name not in edited and w.layer >= 0]
    tables = [name for name in embedding_names(model) if name not in edited]
    rest += [Untouched(name, "embedding: writes before block 0 or into the blocks, and is edited only on request") for name in tables]
    head = tied_head(model)
    if head is not None:
        rest.append(Untouched(head, "output head, the same tensor as the token embedding: it reads the stream and writes nothing to it"))
    reason = "outside the text decoder: what it puts into the stream at image or audio positions is not edited"
    return (*rest, *(Untouched(name, reason) for name in outside_decoder(model)))


def _faults(model: ChatModel, writers: Sequence[WriterProof], blocks: Sequence[BlockProof]) -> tuple[str, ...]:
    # Written so that NaN, which is neither above nor below, is a fault.
    allowed = TOLERANCE if model.network.dtype == torch.float32 else HALF_TOLERANCE
    wrong = [
        f"Writer {w.writer} puts out something else than the edit asks for: gap {w.gap:.1e}, allowed {allowed:.0e}."
        for w in writers
        if not w.gap <= allowed
    ]
    missed = [
        f"Block {model.block_names[b.layer]} adds the direction through something that is not among its writers: {b.unlisted:.1%} of it."
        for b in blocks
        if not b.unlisted <= TOLERANCE  # in any dtype: writers are stripped of the directions in float32, whatever the weights are in
    ]
    return (*wrong, *missed)


def _unknown_blocks(model: ChatModel, writers: Sequence[Writer]) -> tuple[str, ...]:
    known = {writer.layer for writer in writers}
    layers = [layer for layer in range(len(model.blocks)) if layer not in known]
    calls = _record(model, [model.block_names[layer] for layer in layers]) if layers else {}
    adding = [model.block_names[n] for n in layers if float(_update(model, n, calls[model.block_names[n]])[1].norm()) > 0]
    return tuple(f"Block {name} adds to the stream, but no writer of it is known." for name in adding)
