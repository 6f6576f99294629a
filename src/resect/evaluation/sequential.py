"""Sequential stopping in a sweep: a hopeless candidate is dropped after a few prompts, every other one is read to the end.

A candidate is scored on N prompts in random order. Read to the end it would refuse K of them, and it passes with K ≤ `allowed`. After n
prompts, s of them refused, the evidence against every passing K is the likelihood ratio

    R = [s! (n − s)! / (n + 1)!] / P(these n outcomes | K = allowed),    P = C(N − n, K − s) / C(N, K)

of "any K is as likely as any other" against the passing K that explains the outcomes best. At the true K that ratio is a martingale which
starts at 1, so it ever reaches 1/α with a probability of at most α (Ville's inequality): one may look as often as one likes, and stop
whenever one likes. Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement" (2020), with a uniform prior.

Guaranteed, if the order of the prompts was drawn at random and not by looking at responses:

- a candidate that would pass on all N prompts is dropped with a probability of at most α, whatever the looks;
- a hopeless one (K ≥ `hopeless`) is dropped by `deadline` prompts with a probability of at least 1 − β, looking after each `every` prompts.

Both are about these N prompts, not about others like them, and about one candidate: for m candidates together take α/m. Nothing is said of
candidates between the two rates: they are read to the end or dropped rightly.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from resect.errors import UserError

_SLACK = 1e-9  # a share of prompts is a product of floats; 0.1 × 30 must allow 3


@dataclass(frozen=True)
class DropRule:
    """When a candidate is dropped: `prompts` N in all, `allowed` refusals to pass, `hopeless` ones to be given up, error rates α and β.

    Raises: UserError for numbers out of order, or error rates outside 0–1.
    """

    prompts: int
    allowed: int
    hopeless: int
    alpha: float = 0.01
    beta: float = 0.05
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.allowed < self.hopeless <= self.prompts or self.every < 1:
            raise UserError(
                f"Sequential stopping needs 0 ≤ allowed < hopeless ≤ prompts and looks at least 1 prompt apart, but got {self.allowed}, "
                f"{self.hopeless}, {self.prompts} and {self.every}; set the two refusal rates further apart or give more prompts."
            )
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise UserError(f"Error rates lie between 0 and 1, but got alpha {self.alpha} and beta {self.beta}; 0.01 and 0.05 are usual.")

    def drops(self, refusals: int, seen: int) -> bool:
        """Return whether `refusals` among the first `seen` prompts are enough to drop the candidate.

        Raises: UserError for counts that no candidate can have.
        """
        if not 0 <= refusals <= seen <= self.prompts:
            raise UserError(f"A candidate cannot refuse {refusals} of {seen} prompts out of {self.prompts}; count each prompt once.")
        return bool(refusals >= self.boundary[seen])

    @cached_property
    def boundary(self) -> NDArray[np.int64]:
        """Return, for n = 0 … N prompts seen, the number of refusals from which the candidate is dropped; n + 1 where none is enough."""
        n, s = np.ogrid[: self.prompts + 1, : self.prompts + 1]
        possible = s <= n
        evidence = _log_uniform(n, s) - _log_likelihood(n, s, prompts=self.prompts, refused=self.allowed)
        # Where the rate so far is within what is allowed, a smaller K explains the outcomes better than `allowed` does: never drop there.
        beyond = s * (self.prompts + 1) >= self.allowed * n
        enough = possible & beyond & (evidence >= -math.log(self.alpha) - _SLACK)
        return np.where(enough.any(axis=1), enough.argmax(axis=1), np.arange(self.prompts + 1) + 1)

    def dropped_by(self, refused: int) -> NDArray[np.float64]:
        """Return, for n = 0 … N prompts, the exact probability that a candidate that refuses `refused` of all N is dropped by then.

        Over all orders of the prompts, looking after every `every` prompts and at the end.

        Raises: UserError for more refusals than prompts.
        """
        if not 0 <= refused <= self.prompts:
            raise UserError(f"A candidate cannot refuse {refused} of {self.prompts} prompts; give a number from 0 to {self.prompts}.")
        alive = np.zeros(self.prompts + 2)  # alive[s]: s refusals so far, and not dropped
        alive[0] = 1.0
        counts, dropped = np.arange(self.prompts + 2), np.zeros(self.prompts + 1)
        for n in range(1, self.prompts + 1):
            refuses = np.clip((refused - counts) / (self.prompts - n + 1), 0.0, 1.0)
            alive = alive * (1 - refuses) + np.concatenate([[0.0], (alive * refuses)[:-1]])
            look = n % self.every == 0 or n == self.prompts
            gone = (counts >= self.boundary[n]) & look
            dropped[n] = dropped[n - 1] + alive[gone].sum()
            alive[gone] = 0.0
        return dropped

    @cached_property
    def deadline(self) -> int:
        """Return the number of prompts by which a hopeless candidate has been dropped with a probability of at least 1 − β; at most N."""
        return int((self.dropped_by(self.hopeless) >= 1 - self.beta).argmax())


def drop_rule(prompts: int, *, passes: float, hopeless: float, alpha: float = 0.01, beta: float = 0.05, every: int = 1) -> DropRule:
    """Return the rule for refusal rates instead of counts: a candidate passes at a rate of at most `passes`, from `hopeless` on it is lost.

    Raises: UserError as DropRule does.
    """
    return DropRule(prompts, math.floor(passes * prompts + _SLACK), math.ceil(hopeless * prompts - _SLACK), alpha, beta, every)


def _log_uniform(n: NDArray[np.int64], s: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log of s! (n − s)! / (n + 1)!: the probability of one sequence of outcomes if every K is equally likely."""
    return gammaln(s + 1) + gammaln(np.maximum(n - s, 0) + 1) - gammaln(n + 2)


def _log_likelihood(n: NDArray[np.int64], s: NDArray[np.int64], *, prompts: int, refused: int) -> NDArray[np.float64]:
    """Return log C(N − n, K − s) − log C(N, K), −inf where it cannot happen: one sequence of outcomes drawn without replacement."""
    left, refusing = prompts - n, refused - s
    can_happen = (refusing >= 0) & (refusing <= left)
    inside = np.where(can_happen, refusing, 0)
    logs = gammaln(left + 1) - gammaln(inside + 1) - gammaln(left - inside + 1)
    total = gammaln(prompts + 1) - gammaln(refused + 1) - gammaln(prompts - refused + 1)
    return np.where(can_happen, logs - total, -np.inf)
