"""Numbers with their uncertainty: intervals for rates, means and perplexities, paired tests between arms, rank correlation.

Every interval is at 95 %. Every function refuses empty and non-finite input by name, so nothing here ever returns NaN. Bootstraps
resample prompts, are vectorised, and take an explicit seed: the same input and seed give the same bits.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri

from resect.errors import UserError

Values = Sequence[float | int] | NDArray[np.float64]
Floats = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
_TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
_Z = float(ndtri((1 + LEVEL) / 2))
_CHUNK = 1 << 21  # resampled values held at once: 16 MB of float64
_MAX_EXPONENT = 700.0  # exp() of more overflows a float64; a perplexity saturates at about 1e304 instead of becoming infinite


@dataclass(frozen=True)
class Measurement:
    """A value with its 95 % interval [low, high], the number n of prompts (or pairs) behind it, and its unit."""

    value: float
    low: float
    high: float
    n: int
    unit: str

    def __post_init__(self) -> None:
        if self.n < 1 or not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise UserError(f"A measurement needs n of at least 1 and finite numbers, but got {self!r}; score more prompts.")

    def to_json(self) -> dict[str, float | int | str]:
        """Return the fields as a JSON object: value, low, high, n, unit."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A mean paired difference a − b, its 95 % interval, the two-sided p-value of "no difference", pairs n and unit."""

    value: float
    low: float
    high: float
    p: float
    n: int
    unit: str

    def to_json(self) -> dict[str, float | int | str]:
        """Return the fields as a JSON object: value, low, high, p, n, unit."""
        return asdict(self)


def rate(successes: Sequence[bool]) -> Measurement:
    """Return the share of true entries with its Wilson score interval, as a fraction.

    The interval holds the p with |p̂ − p| ≤ z √(p(1 − p)/n): (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n) (Wilson, JASA 1927).

    Raises: UserError when there are no entries.
    """
    n, hits = len(successes), int(sum(map(bool, successes)))
    if n == 0:
        raise UserError("A rate needs at least one scored prompt, but got none; check that the prompt set and the filters leave some.")
    share, z = hits / n, _Z
    middle, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At the ends the formula gives 0 and 1 up to rounding.
    low = (middle - reach) / (1 + z**2 / n) if hits else 0.0
    high = (middle + reach) / (1 + z**2 / n) if hits < n else 1.0
    return Measurement(share, low, high, n, "fraction")


def mean_of(values: Values, *, unit: str, seed: int = 0) -> Measurement:
    """Return the mean over prompts with a percentile bootstrap interval (2000 draws), in `unit`.

    Raises: UserError when there are no values or one of them is not finite.
    """
    data = _finite(values, "mean")
    means = _resample(lambda rows: data[rows].mean(axis=1), data.size, seed=seed)
    return _measured(float(data.mean()), means, data.size, unit)


def perplexity(nll_sums: Values, token_counts: Sequence[int], *, seed: int = 0) -> Measurement:
    """Return exp(Σ nll / Σ tokens) with a ratio bootstrap over texts (both sums resampled together), per token.

    Negative log-likelihoods in nats. n counts texts, not tokens. Saturates at exp(700).

    Raises: UserError when there are no texts, the lengths differ, a sum is not finite or a text has no scored token.
    """
    sums, counts = _pair(nll_sums, token_counts, "perplexity")
    if (counts < 1).any():
        raise UserError(f"A perplexity needs at least one scored token per text, but text {int((counts < 1).argmax())} has none.")
    ratios = _resample(lambda rows: sums[rows].sum(axis=1) / counts[rows].sum(axis=1), sums.size, seed=seed)
    value = math.exp(min(sums.sum() / counts.sum(), _MAX_EXPONENT))
    return _measured(value, np.exp(np.minimum(ratios, _MAX_EXPONENT)), sums.size, "perplexity per token")


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value for paired outcomes (binomial test on the discordant pairs; 1 if there are none).

    Raises: UserError when there are no pairs or the lengths differ.
    """
    first, second = _pair([float(x) for x in a], [float(x) for x in b], "McNemar test")
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    # Both tails of fair tosses are alike.
    tosses = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), tosses, 0.5))) if tosses else 1.0


def paired_bootstrap(a: Values, b: Values, *, unit: str, seed: int = 0) -> Difference:
    """Return mean(a − b) over pairs with a percentile bootstrap interval and a two-sided p-value.

    The p-value resamples the *centred* differences, which imposes "no difference", and counts means at least as far from 0 as the
    observed one; with 2000 draws it is never below 1/2001. Below about 10 pairs it is too small; read the interval.

    Raises: UserError when there are no pairs, the lengths differ or a value is not finite.
    """
    first, second = _pair(a, b, "paired comparison")
    gaps = first - second
    value = float(gaps.mean())
    noise = _resample(lambda rows: (gaps - value)[rows].mean(axis=1), gaps.size, seed=seed)
    # A relative slack: rounding alone must not make "equally far from 0" look nearer.
    extreme = int((np.abs(noise) >= abs(value) * (1 - 1e-12)).sum())
    low, high = np.percentile(noise + value, _TAILS)
    return Difference(value, float(low), float(high), (1 + extreme) / (1 + noise.size), gaps.size, unit)


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's step-down adjusted p-values, in the order given (family-wise error over all of them).

    Raises: UserError when a p-value lies outside 0–1.
    """
    if any(not 0 <= p <= 1 for p in ps):
        raise UserError(f"Holm's correction needs p-values between 0 and 1, but got {[p for p in ps if not 0 <= p <= 1]}.")
    adjusted, running = [0.0] * len(ps), 0.0
    for done, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        running = max(running, min(1.0, (len(ps) - done) * ps[index]))
        adjusted[index] = running
    return tuple(adjusted)


def spearman(x: Values, y: Values, *, seed: int = 0) -> Measurement:
    """Return Spearman's rank correlation (mean ranks for ties) with a percentile bootstrap over pairs.

    A resample in which one side is constant carries no rank information and counts as 0.

    Raises: UserError below 3 pairs, for unequal lengths, non-finite values or a constant side.
    """
    first, second = _pair(x, y, "rank correlation")
    if first.size < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        raise UserError(f"A rank correlation needs at least 3 pairs and variation on both sides, but got {first.size} pairs.")
    value = float(_rank_correlation(first[None], second[None])[0])
    draws = _resample(lambda rows: _rank_correlation(first[rows], second[rows]), first.size, seed=seed)
    return _measured(value, draws, first.size, "rank correlation")


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable], *, seed: int = 0) -> Measurement:
    """Return Cohen's κ = (p_o − p_e)/(1 − p_e) of two raters with a percentile bootstrap over responses.

    p_o is the share of equal labels, p_e = Σ_v p_a(v) p_b(v) the share expected by chance. Where both give one and the same label
    throughout, κ is 0/0 and counts as 1. Resampling n responses is drawing n from the cells of the table of both raters' labels.

    Raises: UserError when there are no responses or the counts differ.
    """
    n = len(a)
    if n == 0 or len(b) != n:
        raise UserError(f"Agreement needs two verdicts for each response, but got {n} and {len(b)}; judge the same responses twice.")
    labels = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]))}
    table = np.zeros((len(labels), len(labels)))
    for x, y in zip(a, b, strict=True):
        table[labels[x], labels[y]] += 1
    draws = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=DRAWS).reshape(DRAWS, *table.shape)
    return _measured(float(_kappa(table[None])[0]), _kappa(draws), n, "kappa")


def _kappa(tables: Floats | NDArray[np.int64]) -> Floats:
    """Return κ of each table of counts."""
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    same = chance > 1 - 1e-12  # one label throughout: chance agreement is certain, up to rounding
    return np.where(same, 1.0, (observed - chance) / np.where(same, 1.0, 1 - chance))


def _rank_correlation(x: Floats, y: Floats) -> Floats:
    """Return Spearman's correlation of each row of x with the same row of y; 0 where a row is constant."""
    from scipy.stats import rankdata  # half a second to import, and no study asks for ranks

    ranks = [rankdata(side, axis=1) for side in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)


def _resample(statistic: Callable[[NDArray[np.int64]], Floats], n: int, *, seed: int) -> Floats:
    """Return DRAWS values of a row-wise statistic of resampled indices; drawn in chunks so that memory stays bounded."""
    generator, chunk = np.random.default_rng(seed), max(1, _CHUNK // n)
    sizes = [min(chunk, DRAWS - start) for start in range(0, DRAWS, chunk)]
    return np.concatenate([statistic(generator.integers(0, n, (size, n))) for size in sizes])


def _measured(value: float, draws: Floats, n: int, unit: str) -> Measurement:
    low, high = np.percentile(draws, _TAILS)
    return Measurement(value, float(low), float(high), n, unit)


def _finite(values: Values, what: str) -> Floats:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise UserError(f"A {what} needs at least one prompt, but got none; check that the prompt set and the filters leave some.")
    if not np.isfinite(data).all():
        where = int((~np.isfinite(data)).argmax())
        raise UserError(f"A {what} needs finite values, but entry {where} is {data[where]}; the model probably produced NaN or Inf logits.")
    return data


def _pair(a: Values, b: Values, what: str) -> tuple[Floats, Floats]:
    first, second = _finite(a, what), _finite(b, what)
    if first.shape != second.shape:
        raise UserError(f"A {what} needs pairs, but got {first.size} values against {second.size}; score both on the same prompts.")
    return first, second
