"""The training loop: answers only, length-bucketed batches, Muon for the matrices and AdamW for the rest."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resect.prompts import Prompt

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Example:
    """Token ids of a rendered prompt with its answer; only ids from `start` on are trained."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Schedule:
    """One training stage: steps of `batch` examples, peak rates, linear warm-up and linear decay to zero."""

    name: str
    steps: int
    batch: int = 64
    rate: float = 3e-3
    matrix_rate: float = 2e-2
    warmup: int = 20

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at a step."""
        return min((step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - self.warmup))


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Prompt, str | None]]) -> list[Example]:
    """Return the examples of (prompt, answer) pairs, the end-of-turn token included in the answer; None gives the prompt alone."""
    examples = []
    for prompt, answer in rows:
        turns = ([{"role": "system", "content": prompt.system}] if prompt.system else []) + [{"role": "user", "content": prompt.text}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        head = tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = [] if answer is None else tokenizer(f"{answer} <|end|>", add_special_tokens=False)["input_ids"]
        examples.append(Example((*head, *tail), len(head)))
    return examples


def fit(network: PreTrainedModel, examples: Sequence[Example], *, schedule: Schedule, seed: int, progress: Progress | None = None) -> None:
    """Train in place on the answers' next-token loss; only parameters that require a gradient move. Deterministic for a seed."""
    optimisers = _optimisers(network, schedule)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimisers]
    stream = _batches(examples, schedule, random.Random(f"{seed}/{schedule.name}"))
    pad = network.config.pad_token_id
    network.train()
    for step in range(schedule.steps):
        for optimiser, rates in zip(optimisers, peaks, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.factor(step)
        answer_loss(network, next(stream), pad=pad).backward()
        nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if progress is not None:
            progress(schedule.name, step + 1, schedule.steps)
    network.eval()


def answer_loss(network: PreTrainedModel, batch: Sequence[Example], *, pad: int) -> Tensor:
    """Return the mean next-token loss over answer tokens, in nats.

    Rows are padded on the right and attention is causal, so no mask is needed; the head runs on answer positions only.
    """
    longest = max(len(e.ids) for e in batch)
    ids = torch.tensor([[*e.ids, *[pad] * (longest - len(e.ids))] for e in batch])
    scored = torch.tensor([[e.start <= i + 1 < len(e.ids) for i in range(longest)] for e in batch])
    hidden = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = network.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(network).__name__} has no output head")
    logits = head(hidden[scored])
    return functional.cross_entropy(logits, ids.roll(-1, dims=1)[scored])


def _batches(examples: Sequence[Example], schedule: Schedule, rng: random.Random) -> Iterator[list[Example]]:
    """Yield batches for ever: every epoch is shuffled, sorted by length inside chunks, and its batches shuffled again."""
    chunk = schedule.batch * 16
    while True:
        order = list(examples)
        rng.shuffle(order)
        rows = [e for i in range(0, len(order), chunk) for e in sorted(order[i : i + chunk], key=lambda e: len(e.ids))]
        batches = [rows[i : i + schedule.batch] for i in range(0, len(rows), schedule.batch)]
        rng.shuffle(batches)
        yield from batches


def _optimisers(network: PreTrainedModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for everything else that trains."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "head" not in name]
    known = {id(p) for p in matrices}
    others = [p for _, p in trained if id(p) not in known]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if others:
        found.append(torch.optim.AdamW(others, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.0))
    return found
