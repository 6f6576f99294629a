"""How a measured number is read from a run folder and written for people; a missing number is said in words, never shown as 0."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

MISSING = "not measured"
PERCENT = "\N{NO-BREAK SPACE}%"
RATES = frozenset({"refusal_rate", "benign_refusal_rate", "recovery", "top1_flips", "refusal_rate_log_odds", "refusal_rate_echo"})
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Measure:
    """One number with its 95 % interval and the count behind it; of drift `floor` is what rounding alone makes."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    floor: float | None = None

    @property
    def unresolved(self) -> bool:
        """Whether the value is no larger than what rounding alone makes."""
        return self.floor is not None and self.value <= self.floor


def finite(number: object) -> float | None:
    """Return the number as a float, or None where it is missing, NaN or infinite."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return float(number)


def read_measure(raw: object) -> Measure | None:
    """Return the measure of a `{"value", "low", "high", "n"}` entry, or None where it has no finite value."""
    if not isinstance(raw, Mapping):
        return None
    value = finite(raw.get("value"))
    n = finite(raw.get("n"))
    if value is None:
        return None
    low, high, floor = (finite(raw.get(key)) for key in ("low", "high", "floor"))
    return Measure(value, low, high, None if n is None else int(n), floor)


def number(value: float | int | None) -> str:
    """Return three significant digits, with a power of ten below 0.001 and from a million on."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")


def short(value: float | int | None) -> str:
    """Return the number without trailing zeros, for axis labels."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def percent(value: float | int | None) -> str:
    """Return a fraction as a percentage with one decimal, none where it is whole."""
    if value is None:
        return MISSING
    text = f"{value * 100:.1f}".removesuffix(".0").replace("-", "−")
    return f"{'0' if text == '−0' else text}{PERCENT}"


def write(value: float | int | None, *, measure: str) -> str:
    """Return the number in the unit of the named measure: rates as percentages, everything else plain."""
    return percent(value) if measure in RATES else number(value)


def told(measured: Measure, *, measure: str) -> str:
    """Return the value in the unit of the measure, or the floor that it cannot be told from."""
    return f"≤ {write(measured.floor, measure=measure)}" if measured.unresolved else write(measured.value, measure=measure)


def interval(measured: Measure, *, measure: str) -> str:
    """Return `low to high` in the unit of the measure, or what is missing in words."""
    if measured.unresolved:
        return "rounding alone makes as much"
    if measured.low is None or measured.high is None:
        return "no interval"
    low, high = write(measured.low, measure=measure), write(measured.high, measure=measure)
    return f"{low.removesuffix(PERCENT)} to {high}"


def count(n: int | None) -> str:
    """Return `n 120`, or that it is unknown."""
    return "n unknown" if n is None else f"n {n:,}"


def hover(name: str, measured: Measure, *, measure: str) -> str:
    """Return one line with value, interval and n, for a tooltip."""
    return f"{name}: {told(measured, measure=measure)} ({interval(measured, measure=measure)}; {count(measured.n)})"


def p_value(value: object) -> str:
    """Return a p value with two digits, floored at 0.001 in words."""
    p = finite(value)
    return MISSING if p is None else "< 0.001" if p < 1e-3 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
