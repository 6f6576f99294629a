"""Memory that each stage needs, predicted before any weight is read.

Parameters are counted on tensors without data (the meta device). What a forward pass holds at its peak is found by running the network
there too, while every tensor's size is noted as it comes and goes: no list of architectures, and no memory used. The rest is arithmetic on
what the modules of each stage keep. Not counted: the interpreter with its libraries, and scratch space inside kernels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from resect.errors import UserError
from resect.models.batches import MAX_PADDING, batches
from resect.models.chat import Rendered
from resect.models.forward import accepts, cache_argument, run_until
from resect.models.live import FusedKernels, Live
from resect.models.load import find_blocks
from resect.models.source import first_line, is_vision_language

_FLOAT = 4
_DOUBLE = 8
_KL_VALUES = 1 << 22  # float64 values of one operand of a KL divergence that are held at once
_KL_COPIES = 6  # both operands, normalised, their difference, its weight and the product
_MASK_COPIES = 3  # a padding mask of rows x tokens x tokens in bytes, and what it is made from


@dataclass(frozen=True)
class Workload:
    """What is asked of the model: the token counts of the prompts that go in together, and what is kept of them.

    `captured` prompts have their activations kept; `observed` prompts have their first-token
    log-probabilities kept, `learnt` of them are read together; `scored` are the prompts of a test side, followed for `forced` tokens. At
    most `logits_at_once` logits are scored in one pass. A backward pass, of which the forecast takes `followed` numbers, gets batches of
    `backward_tokens`.
    """

    tokens: tuple[int, ...]
    batch_tokens: int
    new_tokens: int
    captured: int
    observed: int
    learnt: int
    scored: int
    forced: int
    logits_at_once: int
    backward_tokens: int
    followed: int


@dataclass(frozen=True)
class Stage:
    """Bytes that a stage holds at its peak: beside the weights' device (`device`), and always in main memory (`host`)."""

    name: str
    device: int
    host: int

    def total(self, *, on_cpu: bool) -> int:
        """Return what the device must hold: with the processor as device both."""
        return self.device + self.host if on_cpu else self.device


@dataclass(frozen=True)
class Pass:
    """One forward pass: bytes held at its peak, bytes of what it leaves behind, and bytes of the cache among them."""

    peak: int
    left: int
    cache: int = 0


def without_weights(config: PreTrainedConfig, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the network of a configuration with no data in it (meta device): its tensors have shapes and dtypes only.

    Raises:
        UserError: a configuration from which no network can be made.
    """
    loader = AutoModelForImageTextToText if is_vision_language(config) else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return loader.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval().requires_grad_(requires_grad=False)
    except (OSError, ImportError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"No network can be made from the configuration ({config.model_type}): {first_line(error)}") from error


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; what is shared (tied embeddings) counts once."""
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


def predict(network: PreTrainedModel, work: Workload, *, on_cpu: bool) -> tuple[Stage, ...]:
    """Return what load, capture, study and save hold at their peaks, for a network without data in the dtype it will run in.

    `on_cpu` says whether it will run on the processor, whose kernels need room of their own (`packed_bytes`).

    Raises:
        UserError: a network whose forward pass cannot be run without data.
    """
    weights = weight_bytes(network)
    try:
        capture, study = capture_stage(network, work), study_stage(network, work, on_cpu=on_cpu)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"A pass of {type(network).__name__} cannot be run without data ({first_line(error)}), so its memory cannot be predicted; its "
            f"weights are {weights} bytes."
        ) from error
    return (
        Stage("load", weights, 0),
        replace(capture, device=weights + capture.device),
        replace(study, device=weights + study.device),
        Stage("save", weights + bake_bytes(network), 0),
    )


def capture_stage(network: PreTrainedModel, work: Workload) -> Stage:
    """Return what capturing holds beside the weights: a pass up to the last block, the wanted rows of a batch and those kept so far."""
    layers, d_model = len(find_blocks(network)), _text(network).hidden_size
    row = layers * d_model * _FLOAT
    made = shapes(work, max_padding=MAX_PADDING)
    passes = [run_to_last_block(network, rows, tokens, padded=p).peak + 2 * rows * row for rows, tokens, p in made]
    return Stage("capture", max(passes), work.captured * row)


def study_stage(network: PreTrainedModel, work: Workload, *, on_cpu: bool = False) -> Stage:
    """Return what a study holds beside the weights: the most of writers, generation, scoring and forecast, and all distributions kept.

    Kept are first-token log-probabilities of the base (all prompts) and of an edit (both test sides), and teacher-forced ones of both. The
    log-odds judge reads the learnt ones joined together and in float64; a KL divergence is taken in float64, a part at a time.
    """
    row = _text(network).vocab_size * _FLOAT
    blocks = [network.get_submodule(name) for name in find_blocks(network)]
    writers = max(sum(p.numel() * _FLOAT for p in b.parameters() if p.element_size() < _FLOAT) for b in blocks)
    decoded = [generation_bytes(network, *shape, new=work.new_tokens, on_cpu=on_cpu) for shape in shapes(work)]
    passes = max(*decoded, scoring_bytes(network, work, on_cpu=on_cpu), slopes_bytes(network, work))
    observed, learnt = work.observed * row, work.learnt * row
    judged = observed + learnt + 3 * learnt * _DOUBLE // _FLOAT
    scored = observed + work.scored * (2 + 2 * work.forced) * row
    compared = scored + kl_bytes(work.scored * work.forced * row // _FLOAT)
    return Stage("study", max(writers, passes), max(judged, compared))


def kl_bytes(values: int) -> int:
    """Return what a KL divergence holds beside its operands."""
    return _KL_COPIES * _DOUBLE * min(_KL_VALUES, values)


def generation_bytes(network: PreTrainedModel, rows: int, tokens: int, padded: bool, *, new: int, on_cpu: bool = False) -> int:  # noqa: FBT001  a shape
    """Return what decoding a batch holds: the pass over the prompts, its logits in float32 and checked, or the cache at its longest.

    The cache grows by copying: one layer of it is there twice.
    """
    first = run_to_logits(network, rows, tokens, kept=1, cache=True, padded=padded)
    cache = run_to_logits(network, rows, tokens + new, kept=1, cache=True).cache
    logits = rows * _text(network).vocab_size
    widened = logits * (_FLOAT if network.dtype.itemsize < _FLOAT else 0)
    grown = cache + cache // len(find_blocks(network)) + logits * network.dtype.itemsize + widened
    return max(first.peak, first.left + widened + logits, first.left + packed_bytes(network, rows, on_cpu=on_cpu), grown)


def scoring_bytes(network: PreTrainedModel, work: Workload, *, on_cpu: bool = False) -> int:
    """Return what scoring holds: a pass with its logits, in float32 and as log-probabilities, while the batch before is still there."""
    longest, vocab = max(work.tokens), _text(network).vocab_size
    found = []
    for kept in {1, work.forced}:
        rows = min(len(work.tokens), work.batch_tokens // (longest + kept - 1), work.logits_at_once // (kept * vocab))
        one = run_to_logits(network, max(1, rows), longest + kept - 1, kept=kept, cache=False, padded=len(set(work.tokens)) > 1)
        scored = max(1, rows) * kept * vocab * _FLOAT
        before = 2 * scored if rows < len(work.tokens) else 0
        widened = scored if network.dtype.itemsize < _FLOAT else 0
        packed = packed_bytes(network, max(1, rows), on_cpu=on_cpu)
        found.append(max(before + max(one.peak, one.left + widened, one.left + packed), before // 2 + 2 * scored))
    return max(found)


def packed_bytes(network: PreTrainedModel, rows: int, *, on_cpu: bool) -> int:
    """Return the copies of the head that the processor makes in bfloat16 where only the last tokens are scored: one for every row.

    Measured (benchmarks/memory.py): the product of a matrix with some tokens of each row, which do not lie side by side, packs the matrix
    once a row in this dtype, and in float32 and float16 not at all.
    """
    head = network.get_output_embeddings()
    return rows * head.weight.nbytes if on_cpu and head is not None and network.dtype == torch.bfloat16 else 0


def slopes_bytes(network: PreTrainedModel, work: Workload) -> int:
    """Return what the forecast holds: a forward pass that keeps what its backward pass needs, and that one, back to the embeddings."""
    return max(run_backward(network, rows, tokens, padded=p, times=work.followed) for rows, tokens, p in shapes(work, work.backward_tokens))


def bake_bytes(network: PreTrainedModel) -> int:
    """Return what baking an edit holds: the largest matrix of the blocks once edited, and what it takes to measure the change.

    That is the difference in float32, and both sides of it where they are in half precision. Saving writes tensors from where they are.
    """
    matrices = [p for name in find_blocks(network) for p in network.get_submodule(name).parameters()]
    return max(p.numel() * (p.element_size() + (3 if p.element_size() < _FLOAT else 1) * _FLOAT) for p in matrices)


def shapes(work: Workload, batch_tokens: int | None = None, *, max_padding: int | None = None) -> tuple[tuple[int, int, bool], ...]:
    """Return rows, width and whether there is padding, of the batches that may need most: most tokens, and most rows."""
    made = [
        (len(b.rows), int(b.input_ids.shape[1]), int(b.lengths.min()) < int(b.lengths.max()))
        for b in batches([Rendered(range(n)) for n in work.tokens], batch_tokens=batch_tokens or work.batch_tokens, max_padding=max_padding)
    ]
    # Of equal shapes the padded one needs more.
    return tuple({max(made, key=lambda s: (s[0] * s[1], s[2])), max(made, key=lambda s: (s[0], s[1], s[2]))})


def run_to_last_block(network: PreTrainedModel, rows: int, tokens: int, *, padded: bool = False) -> Pass:
    """Return what a pass without a cache and without logits holds."""
    last = network.get_submodule(find_blocks(network)[-1])
    with FusedKernels(), Live() as live:
        run_until(network, last, {**_inputs(rows, tokens), "use_cache": False}, hooks={})
    return Pass(live.peak + _mask(rows, tokens, padded=padded), 0, 0)


def run_to_logits(network: PreTrainedModel, rows: int, tokens: int, *, kept: int, cache: bool, padded: bool = False) -> Pass:
    """Return what a pass holds that scores its last `kept` tokens, and what stays of it: logits, and the cache where one is kept."""
    options = {"logits_to_keep": kept} if accepts(network, "logits_to_keep") else {}
    inputs = _inputs(rows, tokens)
    with torch.no_grad(), FusedKernels(), Live() as live:
        output = network(**inputs, use_cache=cache, **options)
        logits, past = output.logits, output.get(cache_argument(network)) if cache else None
        del output
        left = live.now
        del logits
        with_cache = live.now
        del past
    return Pass(live.peak + _mask(rows, tokens, padded=padded), left, with_cache - live.now)


def run_backward(network: PreTrainedModel, rows: int, tokens: int, *, times: int, padded: bool = False) -> int:
    """Return what a pass holds that is differentiated down to the embeddings: `times` log-probabilities of the next token, one by one."""
    table = network.get_input_embeddings()
    options = {"logits_to_keep": 1} if accepts(network, "logits_to_keep") else {}
    started: list[torch.Tensor] = []

    def start(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        started.append(output.detach().requires_grad_())
        return started[0]

    with table.register_forward_hook(start), torch.enable_grad(), FusedKernels(), Live() as live:
        logprobs = network(**_inputs(rows, tokens), use_cache=False, **options).logits[:, -1].float().log_softmax(-1)
        for left in reversed(range(times)):
            torch.autograd.grad(logprobs[:, 0].sum(), started, retain_graph=left > 0)
    return live.peak + _mask(rows, tokens, padded=padded)


def _inputs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    # Without a mask, as networks run where nothing is padded: one is dropped as soon as they see that it hides nothing.
    return {"input_ids": torch.empty(rows, tokens, dtype=torch.long, device="meta")}


def _mask(rows: int, tokens: int, *, padded: bool) -> int:
    return _MASK_COPIES * rows * tokens * tokens if padded else 0


def _text(network: PreTrainedModel) -> Any:
    return network.config.get_text_config(decoder=True)
