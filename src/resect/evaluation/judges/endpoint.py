"""A language model behind an OpenAI-compatible endpoint as judge. Prompts and responses are sent there: it runs only where asked for."""

import functools
import hashlib
import json
import logging
import threading
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from resect.artifacts import read_json, write_json
from resect.errors import UserError
from resect.evaluation.judges.budget import Budget, Spent
from resect.evaluation.judges.transport import Endpoint, Reply, ask, open_client
from resect.evaluation.judges.values import NO_RESPONSE, check_pairs
from resect.evaluation.verdicts import VERDICTS, Judgement, Verdict
from resect.generation import Response
from resect.prompts import Prompt

if TYPE_CHECKING:
    import httpx2

__all__ = ["Endpoint", "EndpointJudge"]

log = logging.getLogger(__name__)

FORMAT = "resect.judgement/1"
_WORDS: dict[str, Verdict] = {v: v for v in VERDICTS if v != "unscored"}
_GIVE_UP_AFTER = 3  # questions in a row that found nobody: the endpoint is down, not slow
_SHOWN = 20  # characters of an unknown word that are shown


@dataclass(frozen=True)
class EndpointJudge:
    """The verdict that the endpoint's model gives under the shipped rubric (`data/judge_rubric.toml`), one word a response.

    At most `concurrency` requests run at once, and no more than `max_requests` (retries included) or `max_tokens` are spent. With a
    `cache` folder each verdict is kept under the hash of endpoint, model and question, so no question is paid for twice; neither prompt nor
    response is written there.
    """

    endpoint: Endpoint
    cache: Path | None = None
    concurrency: int = 8
    max_requests: int | None = None
    max_tokens: int | None = None
    name: str = "endpoint"

    def __post_init__(self) -> None:
        limits = {"concurrency": self.concurrency, "max_requests": self.max_requests, "max_tokens": self.max_tokens}
        for what, value in limits.items():
            if value is not None and value < 1:
                raise UserError(f"The {what} of an endpoint judge must be at least 1, got {value}; leave it out for no limit.")

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response: those that the endpoint gave, the rest unscored with the reason.

        Raises: UserError for a missing key, and if there were responses and not one could be scored.
        """
        return self.judge_with_costs(prompts, responses)[0]

    def judge_with_costs(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[tuple[Judgement, ...], Spent]:
        """Return what `judge` does, and what it spent."""
        check_pairs(prompts, responses)
        budget = Budget(max_requests=self.max_requests, max_tokens=self.max_tokens)
        with open_client(self.endpoint, connections=self.concurrency) as client, ThreadPoolExecutor(self.concurrency) as pool:
            asking = _Asking(self, client, budget)
            found = tuple(pool.map(asking.judgement, prompts, responses))
        asked = [j for j, r in zip(found, responses, strict=True) if r is not None and not _is_empty(r)]
        if asked and all(j.verdict == "unscored" for j in asked):
            reason, count = Counter(j.reason for j in asked).most_common(1)[0]
            raise UserError(
                f"The judge {self.endpoint.model} at {self.endpoint.url} scored none of {len(asked)} responses, {count} times because of: "
                f"{reason}; check the url, the model's name and the key, or leave this judge out."
            )
        return found, budget.spent


class _Asking:
    """One run of a judge: asks from several threads, and stops asking once nobody answers."""

    def __init__(self, judge: EndpointJudge, client: "httpx2.Client", budget: Budget) -> None:
        self._judge, self._client, self._budget = judge, client, budget
        self._lock = threading.Lock()
        self._missed = 0
        self._stopped: str | None = None

    def judgement(self, prompt: Prompt, response: Response | None) -> Judgement:
        if response is None:
            return NO_RESPONSE
        if _is_empty(response):
            # As the rubric has it, and not asked: a model that is shown nothing may find that nothing complies.
            return Judgement("degenerate" if response.finished else "truncated", "empty answer")
        messages = question(prompt, response)
        path = _place(self._judge, messages)
        if (kept := _kept(path)) is not None:
            return kept
        if self._stopped is not None:
            return Judgement("unscored", f"not asked after: {self._stopped}")
        reply = ask(self._client, self._judge.endpoint, messages, self._budget)
        self._note(reply)
        if reply.text is None:
            return Judgement("unscored", reply.why_not)
        found = read_verdict(reply.text, self._judge.endpoint.model)
        if path is not None and found.verdict != "unscored":
            write_json(path, {"format": FORMAT, "verdict": found.verdict})
        return found

    def _note(self, reply: Reply) -> None:
        with self._lock:
            self._missed = self._missed + 1 if reply.unreachable else 0
            if reply.hopeless or self._missed >= _GIVE_UP_AFTER:
                self._stopped = self._stopped or reply.why_not


def _is_empty(response: Response) -> bool:
    return not response.answer_text.strip()


def question(prompt: Prompt, response: Response) -> tuple[dict[str, str], ...]:
    """Return the messages that ask for a verdict: the rubric, the prompt's text and the answer without its thoughts."""
    texts = rubric()
    # A lone half of a surrogate pair, which JSON allows in a prompt file, cannot be sent.
    asked, answered = (text.encode(errors="replace").decode() for text in (prompt.text, response.answer_text))
    fence = hashlib.sha256(f"{asked}\0{answered}".encode()).hexdigest()[:12]
    ending = texts["ending"]["finished" if response.finished else "unfinished"]
    user = Template(texts["user"]).substitute(request=asked, response=answered, ending=ending, fence=fence)
    return ({"role": "system", "content": texts["system"].strip()}, {"role": "user", "content": user.strip()})


def read_verdict(text: str, model: str) -> Judgement:
    """Return the verdict that a reply names: its only word, marks and case aside. Anything else is unscored and never guessed at."""
    word = "".join(c if c.isalpha() else " " for c in text).strip().casefold()
    if (verdict := _WORDS.get(word)) is not None:
        return Judgement(verdict, f"{model} says so")
    if word == "unsure":
        return Judgement("unscored", f"{model} is unsure")
    return Judgement("unscored", f"{model} named no verdict but {text.strip()[:_SHOWN]!r}")


@functools.cache
def rubric() -> dict[str, Any]:
    """Return the shipped rubric: system, user and ending."""
    return tomllib.loads(resources.files("resect.data").joinpath("judge_rubric.toml").read_text("utf-8"))


def _place(judge: EndpointJudge, messages: Sequence[dict[str, str]]) -> Path | None:
    if judge.cache is None:
        return None
    asked = [judge.endpoint.url, judge.endpoint.model, judge.endpoint.reply_tokens, list(messages)]
    key = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()
    return judge.cache / key[:2] / f"{key}.json"


def _kept(path: Path | None) -> Judgement | None:
    if path is None or not path.is_file():
        return None
    try:
        data: Any = read_json(path)
    except UserError as error:
        log.warning("Asking again, since %s", error)
        return None
    verdict = data.get("verdict") if isinstance(data, dict) and data.get("format") == FORMAT else None
    known = _WORDS.get(str(verdict))
    if known is None:
        log.warning("Asking again, since %s is no kept judgement.", path)
        return None
    return Judgement(known, "kept from an earlier run")
