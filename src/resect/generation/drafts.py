"""Drafts: responses that are known already (the base model's, an earlier edit's) as guesses at the next ones.

A guess is fed to the network in one pass, and only tokens that greedy decoding would have chosen are taken, so the tokens stay those of
plain decoding. A guess that fails costs its pass. Therefore a known response is a guess only where it begins with the tokens decoded so
far, and only while guesses pay, judged by the share that was accepted lately.
"""

from collections.abc import Iterable, Sequence

from resect.models.chat import Rendered

Ids = tuple[int, ...]

_REMEMBERED = 4  # known responses of a prompt, the newest first
# A token fed as part of a guess costs about this share of a token decoded by itself. Measured on two cores (benchmarks/trial.py); an
# accelerator pays less, so this is careful.
_COST = 0.6
_PASS = 64  # tokens: a pass of its own costs as much as feeding so many more (30 to 130, see `MAX_PADDING`)
_TRUST = 32.0  # tokens: guesses are believed at first, and a record counts half as much after so many more


class Drafts:
    """Known responses by prompt, and how well they have done as guesses."""

    def __init__(self) -> None:
        self._known: dict[Ids, list[Ids]] = {}
        self._offered = self._accepted = _TRUST

    def learn(self, prompt: Rendered, response: Ids) -> None:
        """Remember a response to a prompt, unless a longer one that begins with it is known."""
        known = self._known.setdefault(tuple(prompt.ids), [])
        if any(k != response and k[: len(response)] == response for k in known):
            return
        if response in known:
            known.remove(response)
        known.insert(0, response)
        del known[_REMEMBERED:]

    def knows(self, prompts: Iterable[Rendered]) -> bool:
        """Return whether a response to any of the prompts is known."""
        return any(tuple(prompt.ids) in self._known for prompt in prompts)

    def guess(self, prompt: Rendered, new: Ids) -> Ids:
        """Return how the newest known response that begins with `new` goes on; empty if there is none."""
        known = self._known.get(tuple(prompt.ids), ())
        return next((r[len(new) :] for r in known if len(r) > len(new) and r[: len(new)] == new), ())

    @property
    def share(self) -> float:
        """Share of guessed tokens accepted lately."""
        return self._accepted / self._offered

    def width(self, guesses: Sequence[Ids], *, most: int) -> int:
        """Return how many tokens to feed of guesses for the rows of a batch, at most `most`, 0 if guessing would not pay.

        The most of share x tokens guessed - cost x tokens fed, over the widths that a guess has; all, where that spares another pass.
        """
        lengths = [min(most, len(g)) for g in guesses]
        worth = {w: self.share * sum(min(n, w) for n in lengths) - _COST * w * len(lengths) for w in {0, *lengths}}
        best, longest = max(sorted(worth), key=worth.__getitem__), max(worth)
        return longest if best and worth[longest] + _COST * _PASS >= worth[best] else best

    def record(self, *, offered: int, accepted: int) -> None:
        """Note how a pass went; older passes fade."""
        fade = 0.5 ** (offered / _TRUST)
        self._offered, self._accepted = fade * self._offered + offered, fade * self._accepted + accepted
