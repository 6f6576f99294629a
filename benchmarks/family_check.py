"""One tiny random family through every form of one edit: found and proven, by hooks, baked, written to disk, as an adapter."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import families
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import CONFIG_MAPPING, PreTrainedModel

from resect.edit import adapter
from resect.edit.bake import bake
from resect.edit.hooks import applied
from resect.edit.plan import EditPlan, make_plan
from resect.edit.save import save_edited
from resect.edit.stream import stream
from resect.errors import UserError
from resect.evaluation.rounding import nudged
from resect.models.decompose import Decomposition, added
from resect.models.forward import Call, first_tensor, model_inputs, recorded_calls, replay, run_until
from resect.models.load import ChatModel, load_model, wrap
from resect.models.trace import Trace, trace_block
from resect.models.writers import Writer, decomposed, find_writers
from resect.organism import words
from resect.organism.tokenizer import make_tokenizer

FORM_TOLERANCE = 1e-5  # relative error of logits between two forms of the same edit
LEFT_TOLERANCE = 1e-6  # of what a block added along the direction before
SEEN = 1e-3  # an edit must change the logits by more than this, else equal logits would say nothing
ROUNDING = FORM_TOLERANCE / 2  # of a network whose own rounding moves its logits by more, other weights are drawn
DRAWS = 4


class NotBuilt(Exception):
    """The family is no decoder that runs on text alone, or cannot be made here; the message says why."""


class Failed(Exception):
    """A property that does not hold."""


@dataclass
class Row:
    """What came out for one family. `status` is passed, failed, refused (by resect, with its reason) or not built."""

    name: str
    recipe: str = ""
    seed: int = 0
    kind: str = ""
    network: str = ""
    status: str = "passed"
    reason: str = ""
    forms: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    writers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A family with its edit: one random direction removed everywhere (gamma 1), and the logits before and under hooks."""

    model: ChatModel
    writers: tuple[Writer, ...]
    direction: Tensor
    plan: EditPlan
    base: Tensor
    hooked: Tensor
    mixed: dict[int, Decomposition]


def check(name: str) -> dict[str, Any]:
    """Return the row of a family; whatever goes wrong is in it, nothing is raised."""
    row = Row(name, families.recipe(name))
    try:
        _check(row)
    except NotBuilt as error:
        row.status, row.reason = "not built", one_line(error)
    except UserError as error:
        row.status, row.reason = "refused", one_line(error)
    except Failed as error:
        row.status, row.reason = "failed", one_line(error)
    except Exception as error:  # noqa: BLE001 (a family that crashes is a row of the table)
        row.status, row.reason = "failed", f"{type(error).__name__}: {one_line(error)}"
    return asdict(row)


def one_line(error: BaseException) -> str:
    said = re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/", "", str(error))
    return " ".join(said.split())[:300] or type(error).__name__


def _check(row: Row) -> None:
    case = _well_conditioned(row)
    steps: dict[str, Callable[[Case, Row], str | None]] = {"hook": _hook, "adapter": _adapter, "stream": _stream, "bake": _bake}
    for form, step in steps.items():
        row.forms[form] = "failed"
        row.forms[form] = step(case, row) or "passed"
    if row.forms["adapter"].startswith("wrong"):
        raise Failed(row.forms["adapter"].removeprefix("wrong: "))


def _well_conditioned(row: Row) -> Case:
    """Return a network with its edit for which equal forms give equal logits: random weights may amplify rounding by accident."""
    while True:
        case = _found(row)
        row.figures["rounding"] = _rounding(case)
        if row.figures["rounding"] <= ROUNDING or row.seed == DRAWS - 1:
            return case
        row.seed += 1


def _found(row: Row) -> Case:
    network, row.kind = _built(row.name, row.seed)
    row.network = type(network).__name__
    model = wrap(network, make_tokenizer((*words.SPECIAL, *map(str, range(100)))), name=row.name)
    row.forms["proof"] = "refused"
    writers = find_writers(model)
    if {w.layer for w in writers} != set(range(len(model.blocks))):
        raise Failed(f"writers in layers {sorted({w.layer for w in writers})} of {len(model.blocks)} only")
    row.forms["proof"] = "passed"
    row.figures["proof"] = max(w.error for w in writers)
    row.writers = sorted({_shape_of(w) for w in writers})
    return _case(model, writers)


def _rounding(case: Case) -> float:
    """Return what moving every number in the edited network by a part of one ulp does to its logits, relative to them."""
    with applied(case.model, case.writers, case.plan), nudged(case.model):
        return _relative(logits(case.model.network), case.hooked)


def _built(name: str, seed: int) -> tuple[PreTrainedModel, str]:
    """Return network and kind if it is a decoder that runs on text alone.

    Raises:
        NotBuilt: for an encoder-decoder, an encoder, or whatever building or running on text raises.
    """
    fields = CONFIG_MAPPING[name].__dataclass_fields__
    if fields["is_encoder_decoder"].default:
        raise NotBuilt("an encoder-decoder")
    if "is_decoder" in fields and not fields["is_decoder"].default and "add_cross_attention" in fields:
        raise NotBuilt("an encoder by default, which becomes a language model only on request")
    try:
        network, kind = families.build(name, seed=seed)
    except Exception as error:
        raise NotBuilt(f"its tiny configuration cannot be built: {one_line(error)}") from error
    try:
        once = logits(network)
        if not bool(torch.isfinite(once).all()):
            raise NotBuilt("random weights give NaN or infinity")
        if not torch.equal(logits(network), once):
            raise NotBuilt("a forward pass draws random numbers, so two of them differ")
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"it does not run on text alone: {one_line(error)}") from error
    return network, kind


def logits(network: PreTrainedModel) -> Tensor:
    """Return what the output head puts out for two rows of fixed tokens, [row, token, vocabulary]."""
    ids = torch.randint(20, 200, (2, 24), generator=torch.Generator().manual_seed(7))
    ones = torch.ones_like(ids)
    inputs = model_inputs(network, input_ids=ids, attention_mask=ones, position_ids=ones.cumsum(1) - 1)
    head = network.get_output_embeddings()
    if head is None:
        with torch.no_grad():
            return network(**inputs).logits.double()
    # At the head: what llama4 does after it in transformers 5.24 fails on text alone.
    with recorded_calls({"head": head}) as record:
        run_until(network, head, inputs, hooks={})
    return record["head"][0][1].double()


def _case(model: ChatModel, writers: tuple[Writer, ...]) -> Case:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(11))
    layers = len(model.blocks)
    plan = make_plan(writers, direction.expand(layers, 1, -1), torch.ones(layers))
    base = logits(model.network)
    mixed = {layer: decomposed(_trace(model, layer, call), layer=layer)[0] for layer, call in _calls(model).items()}
    with applied(model, writers, plan):
        hooked = logits(model.network)
    return Case(model, writers, direction, plan, base, hooked, {layer: found for layer, found in mixed.items() if found.mixed})


def _calls(model: ChatModel) -> dict[int, Call]:
    with recorded_calls(dict(zip(model.block_names, model.blocks, strict=True))) as record:
        logits(model.network)
    return {layer: record[name][0][0] for layer, name in enumerate(model.block_names)}


def _trace(model: ChatModel, layer: int, call: Call) -> Trace:
    return trace_block(model.blocks[layer], call, name=model.block_names[layer], d_model=model.d_model)


def _hook(case: Case, row: Row) -> None:
    seen = _relative(case.base, case.hooked)
    if seen < SEEN:
        raise Failed(f"the edit changes the logits by {seen:.1e} only")
    if not torch.equal(logits(case.model.network), case.base):
        raise Failed("hooks left a trace")
    row.figures["hook_left"] = _left(case, lambda: applied(case.model, case.writers, case.plan))
    _at_most("left after hooks", row.figures["hook_left"], LEFT_TOLERANCE)


def _bake(case: Case, row: Row) -> None:
    network = case.model.network
    before = _adds(case)
    original = {name: value.clone() for name, value in network.state_dict().items()}
    bake(case.model, case.writers, case.plan)
    _same_logits(row, "bake", logits(network), case.hooked)
    after = _adds(case)
    row.figures["bake_left"] = max(float(a.norm() / b.norm()) for a, b in zip(after, before, strict=True))
    _at_most("left after baking", row.figures["bake_left"], LEFT_TOLERANCE)
    edited = {p.name for w in case.writers for p in w.parameters}
    for name, value in network.state_dict().items():
        if torch.equal(value, original[name]) == (name in edited):
            raise Failed(f"{name} {'was not changed' if name in edited else 'was changed'}")
    once = {name: network.get_parameter(name).clone() for name in edited}
    bake(case.model, case.writers, case.plan)
    row.figures["twice"] = max(_relative(once[name], network.get_parameter(name).detach()) for name in edited)
    _at_most("changed by the second of two equal edits", row.figures["twice"], LEFT_TOLERANCE)
    with torch.no_grad():
        for name, value in once.items():
            network.get_parameter(name).copy_(value)


def _stream(case: Case, row: Row) -> None:
    """The edited checkpoint on disk, written by `edit.stream` from the unedited one, read back."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "edited"
        save_edited(case.model, source, card="")
        stream(source, case.plan, out)
        _same_logits(row, "stream", logits(load_model(out, dtype="float32", device="cpu").network), case.hooked)


def _adapter(case: Case, row: Row) -> str | None:
    """Return why the edit cannot be had as an adapter, if resect refuses it or peft cannot load it: no edit is no wrong edit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        network, _ = families.build(row.name, seed=row.seed)
        try:
            adapter.save_adapter(case.model, adapter.make_adapter(case.model, case.writers, case.plan), out, card="")
            got = logits(adapter.with_adapter(replace(case.model, network=network), out).network)
        except UserError as error:
            return f"refused: {one_line(error)}"
        except Exception as error:  # noqa: BLE001 (what stops peft's own code is a cell of the table)
            return f"not by peft: {one_line(error)}"
        try:
            _same_logits(row, "adapter", got, case.hooked)
        except Failed as error:  # raised in the end: the other forms are measured all the same
            return f"wrong: {one_line(error)}"
    return None


def _left(case: Case, edit: Callable[[], Any]) -> float:
    before = _adds(case)
    with edit():
        after = _adds(case)
    return max(float(a.norm() / b.norm()) for a, b in zip(after, before, strict=True))


def _adds(case: Case) -> list[Tensor]:
    """Return what each block adds along the direction, by token, measured on the stream: (output - input) . r / |r|.

    A mixed block weighs its input anew at each token; what it adds is then its output minus the part made of its input.
    """
    unit = case.direction.double() / case.direction.double().norm()
    found = []
    for layer, call in _calls(case.model).items():
        if layer in case.mixed:
            change = added(_trace(case.model, layer, call), case.mixed[layer])
        else:
            change = _wide(case.model.blocks[layer], call) - call.hidden().double()
        found.append(change.reshape(-1, len(unit)) @ unit)
    return found


def _wide(block: torch.nn.Module, call: Call) -> Tensor:
    """Return the block's output in float64 where its code allows that: the difference of two large streams is otherwise rounding."""
    try:
        state = {n: _double(v) for n, v in [*block.named_parameters(), *block.named_buffers()]}
        with torch.no_grad():
            return first_tensor(functional_call(block, state, _double(call.args), _double(dict(call.kwargs)))).double()
    except RuntimeError:
        return replay(block, call).double()


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _double(v) for k, v in value.items()}
    return type(value)(map(_double, value)) if type(value) in (tuple, list) else value


def _shape_of(writer: Writer) -> str:
    """Return a writer in words that do not depend on the layer: module, layouts, norm."""
    inside = ".".join("*" if part.isdigit() else part for part in writer.module.split("."))
    layouts = sorted({p.layout for p in writer.parameters})
    norm = ", behind a norm" if writer.gain is not None else ""
    mixed = ", mixed" if writer.mixed else ""
    return f"{writer.kind}: {inside} ({', '.join(layouts)}{norm}{mixed})"


def _same_logits(row: Row, form: str, got: Tensor, wanted: Tensor) -> None:
    row.figures[form] = _relative(wanted, got)
    _at_most(f"relative logit error of {form} against hook", row.figures[form], FORM_TOLERANCE)


def _at_most(what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise Failed(f"{what}: {value:.1e}, allowed {limit:.0e}")


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / a.double().norm())
