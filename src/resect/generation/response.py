"""A greedy response as tokens and text."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from resect.models.chat import Rendered, chat_template
from resect.models.load import ChatModel
from resect.models.thinking import answer_of_tokens


@dataclass(frozen=True)
class Response:
    """One greedy response.

    `ids` are the new tokens, the end-of-turn token included when there is one (`finished`). `text` is their text without special
    tokens. `answer` is the text after a leading thinking block, None if there is no such block; a block that never closed leaves "".
    """

    ids: tuple[int, ...]
    text: str
    finished: bool
    answer: str | None = None

    @property
    def answer_text(self) -> str:
        """The text without a leading thinking block."""
        return self.text if self.answer is None else self.answer


def read(model: ChatModel, ids: Sequence[int], *, prompt: Rendered) -> Response:
    """Return new tokens as a `Response`: text, whether the turn ended, and the answer after a leading thinking block."""
    tokens = tuple(ids)
    finished = bool(tokens) and tokens[-1] in model.end_ids
    text = _text(model.tokenizer, tokens)
    answer = answer_of_tokens(model.tokenizer, chat_template(model.tokenizer), tokens, inside=prompt.in_thinking)
    return Response(tokens, text, finished, answer)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
