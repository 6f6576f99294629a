"""Teacher-forced negative log-likelihood (NLL) of answers to prompts and of plain text, as sums and token counts per prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resect.errors import UserError
from resect.evaluation import statistics
from resect.evaluation.forced import Ids, score
from resect.generation import Response
from resect.models.chat import Rendered
from resect.models.load import ChatModel


@dataclass(frozen=True, eq=False)
class Nll:
    """Per text: `sums` of −log p over its scored tokens, in nats, and how many tokens that are."""

    sums: Float[Tensor, " prompt"]
    counts: tuple[int, ...]

    def perplexity(self, *, seed: int = 0) -> statistics.Measurement:
        """Return exp(Σ sums / Σ counts) with a ratio-bootstrap interval over texts."""
        return statistics.perplexity(self.sums.tolist(), self.counts, seed=seed)

    @property
    def means(self) -> Float[Tensor, " prompt"]:
        """NLL per token of each text, in nats."""
        return self.sums / torch.tensor(self.counts, dtype=torch.float64)


def answer_nll(
    model: ChatModel, rendered: Sequence[Rendered], answers: Sequence[str], *, batch_tokens: int = 8192, share_prefix: bool = True
) -> Nll:
    """Return the NLL of each answer after its rendered prompt; the end-of-turn token is scored with the answer, the prompt is not.

    `share_prefix` as in `score`.

    Raises: UserError when the counts differ, there are no answers, or one is blank.
    """
    if len(rendered) != len(answers) or not answers:
        raise UserError(f"Each prompt needs an answer, but got {len(answers)} answers for {len(rendered)} prompts; check the file.")
    blank = [i for i, a in enumerate(answers) if not a.strip()]
    if blank:
        raise UserError(f"Answer {blank[0]} is blank, and a blank answer has no likelihood; remove it from the file.")
    end = turn_end(model)
    plain = model.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    continuations = [(*ids, *end) for ids in plain]
    options = {"batch_tokens": batch_tokens, "share_prefix": share_prefix}
    return _nll(model, [r.ids for r in rendered], continuations, owners=range(len(answers)), **options)


def response_nll(model: ChatModel, rendered: Sequence[Rendered], responses: Sequence[Response], *, batch_tokens: int = 8192) -> Nll:
    """Return the NLL of each response after its prompt, token for token as it was generated; one known as text only is tokenised anew.

    Raises: UserError when the counts differ, there are no responses, or one has no tokens.
    """
    if len(rendered) != len(responses) or not responses:
        raise UserError(f"Each prompt needs a response, but got {len(responses)} for {len(rendered)} prompts; pass both in the same order.")
    spoken = [r.ids or tuple(model.tokenizer(r.text, add_special_tokens=False)["input_ids"]) for r in responses]
    if not all(spoken):
        raise UserError(f"Response {[bool(ids) for ids in spoken].index(False)} has no tokens, so it has no likelihood; leave it out.")
    return _nll(model, [r.ids for r in rendered], spoken, owners=range(len(spoken)), batch_tokens=batch_tokens, share_prefix=True)


def text_nll(model: ChatModel, texts: Sequence[str], *, context: int = 512, stride: int = 256, batch_tokens: int = 8192) -> Nll:
    """Return the NLL of plain texts in windows of `context` tokens, each window moved on by `stride`: every token is scored once.

    A token is scored in the first window that holds it, with at least context − stride tokens before it from the second window on. The
    first token of a text is scored only if the tokenizer puts a beginning-of-text token before it.

    Raises: UserError for a stride outside 1 … context − 1, no texts, or a text with nothing to score.
    """
    if not 1 <= stride < context:
        raise UserError(f"The stride must be at least 1 and below the context, got {stride} with {context}; try context // 2.")
    if not texts:
        raise UserError("Perplexity needs at least one text, but got none; check the file.")
    prefixes: list[Ids] = []
    continuations: list[Ids] = []
    owners: list[int] = []
    for i, ids in enumerate(model.tokenizer(list(texts), verbose=False)["input_ids"]):
        ids = _without_end(model, tuple(ids))
        if len(ids) < 2:
            raise UserError(f"Text {i} has {len(ids)} tokens, and perplexity needs at least 2; remove it or join it with its neighbour.")
        for prefix, scored in windows(ids, context=context, stride=stride):
            prefixes.append(prefix)
            continuations.append(scored)
            owners.append(i)
    return _nll(model, prefixes, continuations, owners=owners, batch_tokens=batch_tokens, share_prefix=False)


def windows(ids: Ids, *, context: int, stride: int) -> Iterator[tuple[Ids, Ids]]:
    """Return (tokens read, tokens scored) per window; the scored parts, in order, are all tokens but the first."""
    done, begin = 1, 0
    while done < len(ids):
        end = min(begin + context, len(ids))
        yield ids[begin:done], ids[done:end]
        done, begin = end, begin + stride


def turn_end(model: ChatModel) -> Ids:
    """Return the token with which the chat template ends an assistant's turn, () if it ends it with none of the end tokens."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = model.tokenizer.apply_chat_template(turns, tokenize=False)
    ids = model.tokenizer(str(rendered), add_special_tokens=False)["input_ids"]
    return next(((i,) for i in reversed(ids) if i in model.end_ids), ())


def _without_end(model: ChatModel, ids: Ids) -> Ids:
    """Drop an end token that the tokenizer appends by itself: it is no part of the text."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == model.tokenizer.eos_token_id else ids


def _nll(
    model: ChatModel,
    prefixes: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    owners: Sequence[int],
    batch_tokens: int,
    share_prefix: bool,
) -> Nll:
    sums = torch.zeros(max(owners) + 1, dtype=torch.float64)
    counts = [0] * len(sums)
    for batch in score(model, prefixes, continuations, batch_tokens=batch_tokens, share_prefix=share_prefix):
        for row, i in enumerate(batch.rows):
            targets = torch.tensor(continuations[i], device=batch.logprobs.device)
            sums[owners[i]] -= batch.logprobs[row, : len(targets)].gather(1, targets[:, None]).double().sum().cpu()
            counts[owners[i]] += len(targets)
    return Nll(sums, tuple(counts))
