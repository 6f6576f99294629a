"""What a judge may spend at an endpoint, kept by several threads at once."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Requests sent (retries included) and tokens used, as far as the endpoint tells or else as reserved."""

    requests: int
    tokens: int


class Budget:
    """Limits on requests and tokens, None for no limit. Tokens are reserved at their upper bound before a request, and settled after it."""

    def __init__(self, *, max_requests: int | None, max_tokens: int | None) -> None:
        self._limits = (max_requests, max_tokens)
        self._requests = self._tokens = self._reserved = 0
        self._changed = threading.Condition()

    @property
    def spent(self) -> Spent:
        """What has been spent so far."""
        with self._changed:
            return Spent(self._requests, self._tokens)

    def reserve(self, tokens: int) -> bool:
        """Take one request and its tokens out of the budget; false if it is spent. Waits while a request under way may give some back."""
        with self._changed:
            while self._reserved and not self._fits(tokens) and self._may_fit(tokens):
                self._changed.wait()
            if not self._fits(tokens):
                return False
            self._requests += 1
            self._reserved += tokens
            return True

    def settle(self, reserved: int, used: int) -> None:
        """Put what was used in the place of what was reserved."""
        with self._changed:
            self._reserved -= reserved
            self._tokens += used
            self._changed.notify_all()

    def _fits(self, tokens: int) -> bool:
        return self._may_fit(tokens + self._reserved)

    def _may_fit(self, tokens: int) -> bool:
        max_requests, max_tokens = self._limits
        return (max_requests is None or self._requests < max_requests) and (max_tokens is None or self._tokens + tokens <= max_tokens)
