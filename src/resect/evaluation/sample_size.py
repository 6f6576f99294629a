"""How many prompts it takes to see a difference between two rates: to be shown wherever a comparison found none."""

import math
from collections.abc import Sequence

from scipy.special import ndtri

from resect.errors import UserError
from resect.evaluation.statistics import LEVEL

POWER = 0.8
POINTS = 0.02
"""The difference that hints speak of: 2 points."""
_SLACK = 1e-9  # of a formula whose result is rounded up


def pairs_needed(difference: float, *, discordant: float, alpha: float = 1 - LEVEL, power: float = POWER) -> int:
    """Return how many prompts, asked of both models, a two-sided McNemar test needs to see a difference with probability `power`.

    n = (z_{1−α/2} √ψ + z_power √(ψ − δ²))² / δ², with ψ the share of prompts on which the models differ and δ the difference of their rates
    (Connor, Biometrics 1987). ψ is at least δ; where it was found smaller, δ is taken.

    Raises: UserError for numbers outside 0–1.
    """
    _check(difference, alpha, power)
    if not 0 <= discordant <= 1:
        raise UserError(f"The share of prompts on which two models differ lies between 0 and 1, got {discordant}; count them again.")
    differ = max(discordant, difference)
    first, second = _quantiles(alpha, power)
    return _up(((first * math.sqrt(differ) + second * math.sqrt(differ - difference**2)) / difference) ** 2)


def prompts_needed(difference: float, *, rate: float, alpha: float = 1 - LEVEL, power: float = POWER) -> int:
    """Return how many prompts *each* of two unpaired groups needs, for a two-sided test of `rate` against `rate` ± `difference`.

    n = (z_{1−α/2} √(2p̄q̄) + z_power √(p₁q₁ + p₂q₂))² / δ² with p̄ the mean of both (Fleiss, Levin and Paik 2003, without their correction for
    continuity); the other rate is taken on the side of ½, which needs more.

    Raises: UserError for numbers outside 0–1.
    """
    _check(difference, alpha, power)
    if not 0 <= rate <= 1:
        raise UserError(f"A rate lies between 0 and 1, got {rate}; give a fraction, not percent.")
    other = rate + difference if rate + difference / 2 <= 0.5 else rate - difference
    mean = (rate + other) / 2
    first, second = _quantiles(alpha, power)
    spread = first * math.sqrt(2 * mean * (1 - mean)) + second * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return _up((spread / difference) ** 2)


def pairs_for(a: Sequence[bool], b: Sequence[bool], *, difference: float = POINTS) -> int:
    """Return how many prompts asked of both models a difference of that size would take, the models differing as often as they do here.

    Raises: UserError when there are no pairs or the lengths differ.
    """
    if not a or len(a) != len(b):
        raise UserError(f"A hint on pairs needs the same prompts of both, but got {len(a)} and {len(b)}; score both on the same prompts.")
    differ = sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
    return pairs_needed(difference, discordant=differ)


def hint(needed: int, n: int, *, difference: float = POINTS, paired: bool = True) -> str:
    """Return the sentence that stands beside a comparison which found nothing."""
    what = "prompts asked of both" if paired else "prompts for each"
    return f"To see a difference of {100 * difference:g} points in 4 of 5 tries, you need n = {needed} {what}; there are {n}."


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    return -float(ndtri(alpha / 2)), float(ndtri(power))


def _up(n: float) -> int:
    return max(1, math.ceil(n - _SLACK))


def _check(difference: float, alpha: float, power: float) -> None:
    values = {"difference": difference, "alpha": alpha, "power": power}
    if wrong := [f"{name} {value}" for name, value in values.items() if not 0 < value < 1]:
        raise UserError(
            f"A sample size needs a difference, an alpha and a power between 0 and 1, got {', '.join(wrong)}; 0.02 is 2 points."
        )
