"""Asking an OpenAI-compatible endpoint: one question, one short text back, retried while that may help."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resect.errors import UserError, missing_extra
from resect.evaluation.judges.budget import Budget

if TYPE_CHECKING:
    import httpx2

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 402, 403, 404, 405})  # the next question would fare no better
_LONGEST_REPLY = 1 << 20
_LONGEST_WAIT = 60.0
_MESSAGE_TOKENS = 64  # what chat formats put around the texts, at most
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server: `url` up to and without `/chat/completions`, and the `model` to ask there.

    `key_variable` names the environment variable that holds the API key; the key itself is never stored or shown. `timeout` is for a whole
    reply, in seconds. A failed request is repeated up to `retries` times after `backoff`, 2 · backoff, 4 · backoff … seconds, or what the
    server asks for, at most a minute.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    reply_tokens: int = 16

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"A judge's url starts with https:// or http:// and names a host, got {self.url!r}; try http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise UserError("A judge's url must hold no user, password or query; put the key in an environment variable and name that.")
        if self.key_variable and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UserError(f"The key in {self.key_variable} would cross the network unencrypted to {parts.hostname}; use https://.")
        if not self.timeout > 0 or self.retries < 0 or not self.backoff >= 0 or self.reply_tokens < 1:
            raise UserError("A judge's timeout and reply_tokens must be above 0, its retries and backoff at least 0; correct them.")

    def key(self) -> str | None:
        """Return the API key, None if none is needed.

        Raises: UserError if the environment variable is not set or holds what cannot stand in a header.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UserError(f"The environment variable {self.key_variable} holds no usable key for {self.url}; set it, or name another.")
        return key


@dataclass(frozen=True)
class Reply:
    """What came back: the text, or why there is none. `hopeless` means that no other question would be answered either."""

    text: str | None
    why_not: str = ""
    hopeless: bool = False
    unreachable: bool = False


@dataclass(frozen=True)
class _Attempt:
    """One request: its reply, whether to try again and when, and the tokens it used, None where the endpoint does not tell."""

    reply: Reply
    retry: bool
    tokens: int | None = None
    wait: float | None = None


def open_client(endpoint: Endpoint, *, connections: int) -> "httpx2.Client":
    """Return a client for the endpoint.

    Raises: UserError if the package is missing or there is no key.
    """
    try:
        import httpx2
    except ImportError as error:
        raise missing_extra("httpx2", "endpoint") from error
    key = endpoint.key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=connections)
    return httpx2.Client(base_url=endpoint.url.rstrip("/") + "/", headers=headers, timeout=endpoint.timeout, limits=limits)


def ask(client: "httpx2.Client", endpoint: Endpoint, messages: Sequence[Mapping[str, str]], budget: Budget) -> Reply:
    """Return the reply to one question. Every attempt is taken out of the budget."""
    # A token is at least one byte, in every byte-level vocabulary.
    bound = sum(len(m["content"].encode()) for m in messages) + _MESSAGE_TOKENS + endpoint.reply_tokens
    last = Reply(None, "the budget is spent", hopeless=True)
    for attempt in range(endpoint.retries + 1):
        if not budget.reserve(bound):
            return Reply(None, "the budget is spent", hopeless=True) if attempt == 0 else last
        used: int | None = bound
        try:
            result = _attempt(client, endpoint, messages)
            used = result.tokens
        finally:
            budget.settle(bound, bound if used is None else used)
        last = result.reply
        if not result.retry:
            return last
        if attempt < endpoint.retries:
            time.sleep(min(_LONGEST_WAIT, endpoint.backoff * 2**attempt if result.wait is None else result.wait))
    return last


def _attempt(client: "httpx2.Client", endpoint: Endpoint, messages: Sequence[Mapping[str, str]]) -> _Attempt:
    import httpx2

    body = {"model": endpoint.model, "messages": list(messages), "temperature": 0, "max_tokens": endpoint.reply_tokens}
    started = time.monotonic()
    try:
        with client.stream("POST", "chat/completions", json=body) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _LONGEST_REPLY:
                    return _Attempt(Reply(None, f"a reply of more than {_LONGEST_REPLY >> 20} MB"), retry=False)
                if time.monotonic() - started > endpoint.timeout:
                    return _Attempt(Reply(None, f"no whole reply within {endpoint.timeout:g} s", unreachable=True), retry=True)
    except httpx2.TimeoutException:
        return _Attempt(Reply(None, f"no reply within {endpoint.timeout:g} s", unreachable=True), retry=True)
    except httpx2.TransportError as error:
        return _Attempt(Reply(None, f"no connection ({type(error).__name__})", unreachable=True), retry=True, tokens=0)
    except httpx2.DecodingError:
        return _Attempt(Reply(None, "a reply that cannot be decompressed"), retry=False)
    if response.status_code != 200:
        reply = Reply(None, f"HTTP {response.status_code}", hopeless=response.status_code in _HOPELESS)
        return _Attempt(reply, retry=response.status_code in _RETRIED, tokens=0, wait=_seconds(response.headers.get("retry-after")))
    return _read(bytes(data))


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header) if header else math.nan
    except ValueError:  # a date, which is rare: the usual backoff will do
        return None
    return seconds if seconds >= 0 else None


def _read(data: bytes) -> _Attempt:
    try:
        parsed: Any = json.loads(data)
    except (ValueError, RecursionError):
        kind = "HTML" if data.lstrip()[:1] == b"<" else "text"
        return _Attempt(Reply(None, f"{kind} where JSON belongs"), retry=False)
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    try:
        content = choices[0]["message"]["content"] if isinstance(choices, list) else None
    except (KeyError, IndexError, TypeError):
        content = None
    usage = parsed.get("usage") if isinstance(parsed, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    tokens = total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None
    if isinstance(choices, list) and len(choices) > 1:
        return _Attempt(Reply(None, f"{len(choices)} choices where one was asked for"), retry=False, tokens=tokens)
    if not isinstance(content, str):
        return _Attempt(Reply(None, "JSON without choices[0].message.content"), retry=False, tokens=tokens)
    return _Attempt(Reply(content), retry=False, tokens=tokens)
