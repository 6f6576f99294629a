"""An edit as a PEFT adapter: W' - W = -gamma U (C^T W) has the rank of the edit, so a LoRA of that rank is exact.

Linear layers (either layout), stacked experts with their biases, and embeddings become low-rank factors. The bias of a linear layer has
none: PEFT's own `bias="lora_only"` keeps its new values with the adapter, so switching the adapter off does not bring the old ones back.
Where PEFT lets no LoRA on a layer, the same matrix is written as its LoKr with a left Kronecker factor of 1.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from resect import artifacts
from resect.edit.adapter_names import ROOT, file_names
from resect.edit.bake import edited_weight
from resect.edit.hooks import matched
from resect.edit.plan import EditPlan, WriterEdit
from resect.edit.save import describe, new_folder
from resect.errors import UserError, missing_extra
from resect.layout import OUTPUT_AXIS
from resect.models.embeddings import tied_head
from resect.models.load import ChatModel, without_data
from resect.models.source import first_line
from resect.models.writers import Writer, WriterParameter

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA factors and biases under the names of an adapter file, and what they change: whole modules and single parameters.

    `transposed` says whether the modules keep their weights as [in, out], which PEFT wants to be told.
    """

    rank: int
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    transposed: bool = False
    kronecker: bool = False


def make_adapter(model: ChatModel, writers: Sequence[Writer], plan: EditPlan) -> Adapter:
    """Return the plan as factors A = C^T W, B = -gamma U, filled up with zeros to the plan's largest rank; the model is left alone.

    Raises:
        UserError: an empty plan, one that keeps norms (its change of a weight has full rank), or one that edits a token embedding which
            is the output head as well.
    """
    edits = matched(writers, plan, d_model=model.d_model)
    if not edits:
        raise UserError("The edit changes nothing, and an adapter of nothing cannot be written; give a strength above 0.")
    _check_head(model, edits)
    rank = max(edit.u.shape[1] for _, edit in edits)
    parameters = [p for writer, _ in edits for p in writer.parameters]
    # In families with stacked experts PEFT takes some modules for experts by their names and leaves them out; never parameters.
    bare = any(p.layout.startswith("expert") for p in parameters)
    kronecker = not bare and not _takes_lora(model, parameters)
    parts = [_part(model, p, _padded(edit, rank), bare=bare) for writer, edit in edits for p in writer.parameters]
    parts = [_kronecker(part) for part in parts] if kronecker else parts
    tensors: dict[str, Tensor] = {}
    for owner, group in groupby(sorted(parts, key=lambda part: (part.owner, part.place)), key=lambda part: part.owner):
        for part, outer in _wrapped(list(group)):
            place = f"{ROOT}{owner}.{'base_layer.' * outer}"
            tensors |= {place + key: value.float().cpu().contiguous() for key, value in part.tensors.items()}
    whole = tuple(part.owner for part in parts if part.factors and part.whole)
    transposed = any(isinstance(model.network.get_submodule(name), Conv1D) for name in whole)
    return Adapter(rank, whole, tuple(part.name for part in parts if part.factors and not part.whole), tensors, transposed, kronecker)


def save_adapter(model: ChatModel, adapter: Adapter, out: Path, *, card: str, proof: Mapping[str, Any] | None = None) -> None:
    """Write an ordinary PEFT adapter folder (factors as safetensors, `adapter_config.json`, proof, card), whole or not at all.

    Raises:
        UserError: peft is not installed, it does not take the adapter for a network of this class, or `out` exists and is not an empty
            folder or cannot be written.
    """
    config = _config(adapter, name=model.name)
    with new_folder(out) as folder:
        config.save_pretrained(folder)
        tensors = file_names(_by_peft(model, lambda peft: peft.get_peft_model(_like(model), _config(adapter))), adapter.tensors)
        artifacts.save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
        _check_taken(model, folder)
        describe(folder, card=card, proof=proof)


def _check_taken(model: ChatModel, folder: Path) -> None:
    """Let PEFT put the adapter on a network of the same class without data; raises `UserError` if it does not take all of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*", category=UserWarning)
        _read_by_peft(model, _like(model), folder)


def _like(model: ChatModel) -> PreTrainedModel:
    """Return a network of the same class without data."""
    with torch.device("meta"):
        return type(model.network)(deepcopy(model.network.config))


def _config(adapter: Adapter, *, name: str | None = None) -> Any:
    common = {"r": adapter.rank, "target_modules": list(adapter.modules), "task_type": "CAUSAL_LM", "inference_mode": True}
    common |= {"base_model_name_or_path": name}
    if adapter.kronecker:
        return _peft().LoKrConfig(alpha=adapter.rank, decompose_factor=1, **common)
    return _peft().LoraConfig(
        lora_alpha=adapter.rank,
        target_parameters=list(adapter.parameters) or None,
        fan_in_fan_out=adapter.transposed,
        bias="lora_only",
        **common,
    )


def _takes_lora(model: ChatModel, parameters: Sequence[WriterParameter]) -> bool:
    """Return whether PEFT puts a LoRA on the linear layers that are edited.

    It does not on `out_proj` of mamba families, whose fused kernels read the weight past its module; they do so in training alone.
    """
    owners = {p.name.rpartition(".")[0] for p in parameters}
    linear = sorted(name for name in owners if isinstance(model.network.get_submodule(name), nn.Linear))
    config = _peft().LoraConfig(r=1, target_modules=linear)
    try:
        _by_peft(model, lambda peft: peft.get_peft_model(_like(model), config))
    except UserError:
        return not linear
    return True


def with_adapter(model: ChatModel, folder: Path) -> ChatModel:
    """Return the model with an adapter read from its folder by PEFT itself; PEFT wraps the network's modules in place.

    Raises:
        UserError: peft is not installed, or it does not find every tensor of the adapter in the model.
    """
    return replace(model, network=_read_by_peft(model, model.network, folder).get_base_model())


def _read_by_peft(model: ChatModel, network: nn.Module, folder: Path) -> Any:
    return _by_peft(model, lambda peft: peft.PeftModel.from_pretrained(network, str(folder)))


def _by_peft(model: ChatModel, act: Callable[[Any], Any]) -> Any:
    """Return what PEFT does; raises `UserError` if it refuses, or leaves anything out."""
    with warnings.catch_warnings():
        # PEFT only warns of factors that it leaves out, and the edit would be incomplete.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        # PEFT reads an attribute that transformers renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            return act(_peft())
        except (UserWarning, ValueError, RuntimeError, KeyError) as error:
            network, reason = type(model.network).__name__, first_line(error)[:160]
            raise UserError(f"PEFT does not take the adapter for {network}: {reason}; save the edited model instead.") from error


@dataclass(frozen=True, eq=False)
class _Part:
    """What an adapter file holds of one parameter: two factors, or a bias as it is after the edit."""

    name: str
    place: int
    whole: bool
    factors: bool
    tensors: Mapping[str, Tensor]

    @property
    def owner(self) -> str:
        return self.name.rpartition(".")[0]


def _wrapped(parts: list[_Part]) -> Iterator[tuple[_Part, int]]:
    """Return each parameter of a module with the number of wrappers around it: PEFT puts one a factorised parameter, the last outermost."""
    for part in parts:
        yield part, sum(other.factors and (other.place > part.place or not part.factors) for other in parts)


def _part(model: ChatModel, described: WriterParameter, edit: WriterEdit, *, bare: bool) -> _Part:
    owner, _, leaf = described.name.rpartition(".")
    module, weight = model.network.get_submodule(owner), model.network.get_parameter(described.name).detach()
    if weight.is_meta:
        raise without_data(described.name)
    place = [name for name, _ in module.named_parameters(recurse=False)].index(leaf)
    if described.layout == "bias":
        return _Part(described.name, place, whole=True, factors=False, tensors={"bias": edited_weight(weight, "bias", edit)})
    whole = leaf == "weight" and isinstance(module, nn.Embedding if bare else nn.Linear | Conv1D | nn.Embedding)
    a, b = _factors(weight.movedim(OUTPUT_AXIS[described.layout], -1), edit)
    if not whole and not _same_sides(module, described):
        a, b = b, a
    if isinstance(module, nn.Embedding):
        tensors = {"lora_embedding_A": a[0].T, "lora_embedding_B": b[0]}
    else:
        tensors = {"lora_A.weight": a.mT.flatten(0, 1), "lora_B.weight": b.permute(1, 2, 0).flatten(1)}
    return _Part(described.name, place, whole, factors=True, tensors=tensors)


def _kronecker(part: _Part) -> _Part:
    """Return two factors of a linear layer under the names of a LoKr: 1 Kronecker (B A)."""
    if not part.factors:
        raise UserError(
            f"PEFT allows no LoRA on this architecture, and its other adapters hold no bias such as {part.name}; save the edited model "
            "instead."
        )
    names = {"lokr_w2_a": part.tensors["lora_B.weight"], "lokr_w2_b": part.tensors["lora_A.weight"], "lokr_w1": torch.ones(1, 1)}
    return replace(part, tensors=names)


def _factors(weight: Tensor, edit: WriterEdit) -> tuple[Float[Tensor, "expert d_in k"], Float[Tensor, "expert d_model k"]]:
    """Return W^T C and -gamma U for every expert (one if the weight is not stacked); the weight's output axis is its last."""
    stacked = (weight if weight.ndim == 3 else weight[None]).double()
    outer = (-edit.gamma * edit.u.double()).to(stacked)
    return stacked @ edit.c.to(stacked), outer.expand(len(stacked), *outer.shape)


def _same_sides(module: nn.Module, described: WriterParameter) -> bool:
    """Return whether PEFT takes the same axis of a bare parameter for its outputs as the model does."""
    axis = OUTPUT_AXIS[described.layout]
    if described.layout in ("out_in", "in_out"):
        return axis == 0
    return axis == (2 if getattr(module, "is_transposed", False) else 1)


def _check_head(model: ChatModel, edits: Sequence[tuple[Writer, WriterEdit]]) -> None:
    head = tied_head(model)
    table = f"{next((writer.name for writer, _ in edits if writer.kind == 'embedding'), '')}.weight"
    if head is not None and model.network.get_parameter(head) is dict(model.network.named_parameters(remove_duplicate=False)).get(table):
        raise UserError(
            f"The token embedding {table} is the output head {head} as well, so merging an adapter of it would change the head; leave the "
            "embeddings as they are, or save the edited model instead."
        )


def _padded(edit: WriterEdit, rank: int) -> WriterEdit:
    if edit.preserve != "nothing":
        raise UserError(
            f"The edit of {edit.writer} keeps {edit.preserve} norms, so it changes the weight by a matrix of full rank, which no "
            "adapter of low rank holds; save the edited model instead."
        )
    missing = rank - edit.u.shape[1]
    return replace(edit, u=nn.functional.pad(edit.u, (0, missing)), c=nn.functional.pad(edit.c, (0, missing)))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "peft") from error
    return peft
