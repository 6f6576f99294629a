"""The sentences that the report computes from the data: the verdict, what to watch out for, what is missing."""

from dataclasses import dataclass

from resect.report.read import RunFolder
from resect.report.values import Measure, finite, percent, read_measure

NEAR = 1.25  # without an interval, ratios of KL within this factor of 1 count as equal


@dataclass(frozen=True)
class Warn:
    """A reason to distrust the headline; a loud one takes the headline back."""

    text: str
    loud: bool = False


@dataclass(frozen=True)
class Verdict:
    """The headline: one sentence, its tone (`good`, `mixed`, `bad`), and the warnings under it."""

    sentence: str
    tone: str
    warnings: tuple[Warn, ...]


def two(value: float) -> str:
    """Return a ratio with two digits, which is what its interval supports."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def times(ratio: Measure, *, after: str = "") -> str:
    """Return a ratio and its interval in words, with a word such as `less` after the number."""
    limits = (
        "no interval"
        if ratio.low is None or ratio.high is None
        else f"95\N{NO-BREAK SPACE}% interval {two(ratio.low)} to {two(ratio.high)}"
    )
    return " ".join(filter(None, (f"{two(ratio.value)}\N{NO-BREAK SPACE}×", after, f"({limits})")))


def inverse(ratio: Measure) -> Measure:
    """Return one over a ratio, the interval turned round."""
    return Measure(1 / ratio.value, 1 / ratio.high if ratio.high else None, 1 / ratio.low if ratio.low else None, ratio.n)


def kl_ratio(run: RunFolder, *, over: str, under: str) -> Measure | None:
    """Return KL of `over` divided by KL of `under` at matched refusal, from the study's own ratio or from the two values."""
    matched = run.part("matched")
    for entry in matched.get("ratios") or []:
        found = read_measure(entry.get("kl_ratio"))
        if found and (entry["a"], entry["b"]) == (over, under):
            return found
        if found and (entry["a"], entry["b"]) == (under, over) and found.value > 0:
            return inverse(found)
    a, b = (finite(matched.get("arms", {}).get(arm, {}).get("kl")) for arm in (over, under))
    return Measure(a / b, None, None, None) if a is not None and b else None


def compare(ratio: Measure | None) -> int:
    """Return 1 where the ratio is above 1, −1 where it is below, 0 where the interval holds 1 or its bound on that side is missing."""
    if ratio is None:
        return 0
    if ratio.low is not None and ratio.low > 1:
        return 1
    return -1 if ratio.high is not None and ratio.high < 1 else 0


BASELINES = {"standard": "the raw one (standard)", "projected": "the usual baseline (projected)"}


def _against(run: RunFolder, *, arm: str, baseline: str) -> str:
    ratio, name = kl_ratio(run, over=baseline, under=arm), BASELINES[baseline]
    if ratio is None:
        values = run.part("matched").get("arms", {})
        reason = next((note for each in (baseline, arm) if (note := values.get(each, {}).get("note"))), "no matched value")
        return f"cannot be compared with {name} ({reason})"
    way = compare(ratio)
    if way == 0:
        return f"cannot be told apart from {name} (ratio of KL {times(ratio)})"
    factor = ratio if way > 0 else inverse(ratio)
    return f"drifts {times(factor, after='less' if way > 0 else 'more')} than {name}"


def verdict(run: RunFolder) -> Verdict:
    """Return the headline for the cleaned arm against the raw and the projected direction at matched refusal."""
    level = finite(run.part("matched").get("refusal"))
    if "sra" not in run.arms or level is None:
        return Verdict("There is no cleaned arm to compare at matched refusal in this run.", "mixed", warnings(run))
    baselines = [arm for arm in BASELINES if arm in run.arms]
    if not baselines:
        return Verdict("There is no baseline arm to compare sra with in this run.", "mixed", warnings(run))
    parts = [_against(run, arm="sra", baseline=arm) for arm in baselines]
    sentence = f"At a matched refusal rate of {percent(level)}, the cleaned direction (sra) {' and '.join(parts)}."
    return Verdict(sentence, _tone(run, baselines), warnings(run))


def _tone(run: RunFolder, baselines: list[str]) -> str:
    ways = {compare(kl_ratio(run, over=arm, under="sra")) for arm in baselines}
    if ways == {-1} or random_does_it(run):
        return "bad"
    return "good" if ways == {1} else "mixed"


def random_does_it(run: RunFolder) -> bool:
    """Return whether cleaning with random directions gets the KL of cleaning with the atoms, at matched refusal."""
    ratio = kl_ratio(run, over="random_atoms", under="sra")
    return ratio is not None and compare(ratio) <= 0


def warnings(run: RunFolder) -> tuple[Warn, ...]:
    """Return every reason to distrust the headline that the data themselves give, the loudest first."""
    quiet = (_control_missing(run), _covert_warning(run), _infeasible_warning(run), _judge_warning(run))
    loud = (_proof_warning(run), _random_warning(run))
    return (*(Warn(text, loud=True) for text in loud if text), *(Warn(text) for text in quiet if text))


def _proof_warning(run: RunFolder) -> str | None:
    faults = run.proof.get("faults") or []
    return f"The edit proof of this run fails: {' '.join(map(str, faults))}" if faults else None


def _control_missing(run: RunFolder) -> str | None:
    if "sra" not in run.arms or kl_ratio(run, over="random_atoms", under="sra"):
        return None
    note = run.part("matched").get("arms", {}).get("random_atoms", {}).get("note") or "no matched value"
    return f"The control random_atoms cannot be compared ({note}), so this run alone does not show that the atoms matter."


def _random_warning(run: RunFolder) -> str | None:
    ratio = kl_ratio(run, over="random_atoms", under="sra")
    if ratio is None or not random_does_it(run):
        return None
    return (
        "RANDOM ATOMS DO WHAT SRA DOES. Cleaning with as many random directions as atoms is not measurably worse at matched refusal: "
        f"KL of random_atoms over KL of sra is {times(ratio)}. No gain shown here can be credited to the concept atoms."
    )


def _infeasible_warning(run: RunFolder) -> str | None:
    names = [arm for arm, entry in run.by_arm("arms").items() if entry.get("feasible") is False]
    return f"No tried setting met the selection rule on validation for: {', '.join(names)}; the nearest one was scored." if names else None


def _covert_warning(run: RunFolder) -> str | None:
    refusal, recovery = run.measure("sra", "refusal_rate"), run.measure("sra", "recovery")
    if not refusal or not recovery or recovery.value >= 0.8 * (1 - refusal.value):
        return None
    return (
        f"Not refusing is not answering: sra refuses {percent(refusal.value)} of the harmful test prompts but answers only "
        f"{percent(recovery.value)} as the helpful twin does."
    )


def _judge_warning(run: RunFolder) -> str | None:
    low = {
        arm: value for arm, entry in run.by_arm("judges").items() if (value := finite(entry.get("agreement"))) is not None and value < 0.9
    }
    if not low:
        return None
    return (
        "The two judges agree on fewer than nine in ten answers for: "
        + ", ".join(f"{arm} ({percent(value)})" for arm, value in low.items())
        + "."
    )


def forecast(run: RunFolder) -> str:
    """Return the forecast made before any edit, and whether it came true at matched refusal."""
    made = run.part("forecast")
    if not made:
        return "No forecast was made before the edit in this run."
    text = f"Before any edit: {made.get('sentence') or 'nothing was said'}"
    if made.get("pays") is None:
        return text
    ratio = kl_ratio(run, over="standard", under="sra")
    if ratio is None:
        return f"{text} Whether it came true cannot be read off: there is no matched ratio of standard to sra."
    came = (compare(ratio) > 0) == bool(made["pays"])
    word = "came true" if came else "did not come true"
    return f"{text} Measured at matched refusal: {times(ratio)}; it {word}."
