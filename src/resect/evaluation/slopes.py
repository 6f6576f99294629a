"""Linear response: how fast a number read off the next-token distribution moves with the strength of an edit, at strength 0.

An edit takes gamma U (C^T y_t) out of a writer's output at every token t, so for any number L of the next-token distribution

    dL/ds = - sum_writers gamma sum_t (U^T dL/dy_t) . (C^T y_t)          at s = 0, s being the factor on all strengths of the plan

which backward passes of the unedited model give for any number of plans at once. This is the first-order theory that arXiv
2601.08489 argues with (- gamma <v, grad L>), computed instead of assumed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.edit.hooks import matched
from resect.edit.plan import EditPlan
from resect.errors import UserError
from resect.models.batches import Batch
from resect.models.chat import Rendered
from resect.models.forward import accepts, first_tensor, model_inputs
from resect.models.load import ChatModel
from resect.models.padding import model_batches
from resect.models.writers import Writer

Numbers = Callable[[Float[Tensor, "sample vocab"]], Sequence[Float[Tensor, " sample"]]]
"""What is read off the log-probabilities of the next token, row by row: one tensor a number."""


@dataclass(frozen=True, eq=False)
class _Factors:
    """The factors of all plans at one writer side by side: column r belongs to plan `owner[r]` and has its strength multiplied in."""

    module: nn.Module
    u: Float[Tensor, "d_model k"]
    c: Float[Tensor, "d_model k"]
    owner: Tensor


def slopes(
    model: ChatModel,
    writers: Sequence[Writer],
    rendered: Sequence[Rendered],
    plans: Sequence[EditPlan],
    numbers: Numbers,
    *,
    batch_tokens: int = 1024,
) -> Float[Tensor, "number prompt plan"]:
    """Return dL/ds of every number L, prompt and plan (nats per unit of strength for log-probabilities), float64.

    One forward and one backward pass per number, whatever the number of plans. The model is not changed.

    Raises:
        UserError: a plan of another model, or a writer whose output has no row for every token.
        RuntimeError: a network that cannot be differentiated.
    """
    factors = _gather(model, writers, plans)
    found: Tensor | None = None
    for batch in model_batches(model, rendered, batch_tokens=batch_tokens):
        rows = _batch_slopes(model, batch.to(model.device), factors, numbers, len(plans))
        if found is None:
            found = torch.zeros(len(rows), len(rendered), len(plans), dtype=torch.float64)
        found[:, list(batch.rows)] = rows
    return torch.zeros(0, 0, len(plans), dtype=torch.float64) if found is None else found


def _gather(model: ChatModel, writers: Sequence[Writer], plans: Sequence[EditPlan]) -> dict[str, _Factors]:
    columns: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for k, plan in enumerate(plans):
        for writer, edit in matched(writers, plan, d_model=model.d_model):
            columns.setdefault(writer.module, []).append((k, edit.gamma * edit.u, edit.c))
    return {
        name: _Factors(
            model.network.get_submodule(name),
            torch.cat([u for _, u, _ in parts], dim=1),
            torch.cat([c for _, _, c in parts], dim=1),
            torch.tensor([k for k, u, _ in parts for _ in range(u.shape[1])]),
        )
        for name, parts in columns.items()
    }


def _batch_slopes(
    model: ChatModel, batch: Batch, factors: Mapping[str, _Factors], numbers: Numbers, plans: int
) -> Float[Tensor, "number sample plan"]:
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.enable_grad():
        # The weights have no gradient; what is followed starts at the embeddings.
        embedding = model.network.get_input_embeddings()
        stack.callback(embedding.register_forward_hook(lambda _m, _a, out: out.detach().requires_grad_()).remove)
        for name, one in factors.items():
            stack.callback(one.module.register_forward_hook(_keep(outputs, name)).remove)
        values = numbers(_next_logprobs(model, batch))
        followed = {name: outputs[name] for name in factors}
        found = torch.zeros(len(values), len(batch.rows), plans, dtype=torch.float64)
        for j, value in enumerate(values):
            gradients = torch.autograd.grad(value.sum(), list(followed.values()), retain_graph=j + 1 < len(values), allow_unused=True)
            for (name, y), gradient in zip(followed.items(), gradients, strict=True):
                if gradient is not None:
                    one = factors[name]
                    found[j].index_add_(1, one.owner, _moved(y.detach(), gradient, one, batch))
    return found


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _args: object, output: object) -> None:
        outputs[name] = first_tensor(output)

    return hook


def _next_logprobs(model: ChatModel, batch: Batch) -> Float[Tensor, "sample vocab"]:
    inputs = model_inputs(model.network, input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    if accepts(model.network, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    return model.network(**inputs).logits[:, -1].float().log_softmax(dim=-1)


def _moved(y: Tensor, gradient: Tensor, one: _Factors, batch: Batch) -> Float[Tensor, "sample k"]:
    """Return - sum_t (gamma U^T dL/dy_t)(C^T y_t) per row and column, padding left out."""
    rows, tokens = batch.input_ids.shape
    if y.numel() != rows * tokens * one.u.shape[0]:
        raise UserError(f"A writer's output has shape {tuple(y.shape)} for {rows} x {tokens} tokens, so its slope cannot be read.")
    y, gradient = (x.reshape(rows, tokens, -1).float() for x in (y, gradient))
    product = (y @ one.c.to(y)) * (gradient @ one.u.to(y)) * batch.attention_mask[:, :, None]
    return -product.sum(1).double().cpu()
