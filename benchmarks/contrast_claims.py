"""What the contrast experiment says: every sentence is chosen by a test on the rows of the organisms, none is written by hand.

An organism is one unit. A gap is the paired difference of two arms over organisms, with Student's 95 % interval and the exact sign-flip
test. It is called higher or lower where its interval leaves out 0, alike where the interval lies inside a margin fixed beforehand
(`MARGINS`), and open otherwise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from resect.evaluation.statistics import spearman

Row = Mapping[str, Any]
Measure = Callable[[Row], float | None]
Verdict = Literal["higher", "lower", "alike", "open"]

EVERYWHERE, ALONE = "everywhere", "alone"
WAYS = {EVERYWHERE: "taken out everywhere", ALONE: "taken out of one layer"}
MARGINS = {"refusal": 0.1, "log KL": math.log10(1.5), "cosine": 0.05}
FAILS = 0.5  # an arm that leaves more refusals than this has failed
LEAST_KL = 1e-6  # nats: KL below this is rounding
U, M = "unmatched/mean_difference", "matched/mean_difference"
TESTS = "tests/e2e/test_contrast_page.py"


@dataclass(frozen=True)
class Gap:
    """A paired difference over organisms; low and high are None below three organisms."""

    value: float
    low: float | None
    high: float | None
    p: float
    n: int
    unit: str = "refusal"

    @property
    def verdict(self) -> Verdict:
        """Say what the interval allows to say."""
        if self.low is None or self.high is None:
            return "open"
        margin = MARGINS[self.unit]
        if -margin <= self.low and self.high <= margin:
            return "alike"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "open"

    def __str__(self) -> str:
        if self.unit == "log KL":
            value, low, high = (None if x is None else f"{10**x:.2g}" for x in (self.value, self.low, self.high))
            span = "no interval" if low is None else f"{low} to {high}"
            return f"KL ratio {value} ({span}; p {self.p:.2g}, n {self.n})"
        if self.unit == "cosine":
            return f"{self.value:+.2f}" if self.low is None else f"{self.value:+.2f}, {self.low:+.2f} to {self.high:+.2f}"
        span = "no interval" if self.low is None or self.high is None else f"{100 * self.low:+.0f} to {100 * self.high:+.0f}"
        return f"{100 * self.value:+.0f} points ({span}; p {self.p:.2g}, n {self.n})"


@dataclass(frozen=True)
class Claim:
    """A sentence, the question it answers, the figure that shows it, and the test of the code that made it."""

    question: str
    text: str
    figure: str
    test: str
    gaps: Mapping[str, Gap]


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean and Student's 95 % interval (None below three values)."""
    data = np.asarray(values, float)
    mean = float(data.mean())
    if len(data) < 3:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data)))
    return mean, mean - half, mean + half


def sign_flip(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of "differences are as likely of either sign"."""
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(sum(differences))
    return float((np.abs(sums) >= observed * (1 - 1e-12) - 1e-12).mean())


def gap(rows: Sequence[Row], first: Measure, second: Measure, unit: str = "refusal") -> Gap:
    """Return first - second over the organisms that have both."""
    pairs = [(a, b) for a, b in ((first(row), second(row)) for row in rows) if a is not None and b is not None]
    differences = [a - b for a, b in pairs]
    if not differences:
        return Gap(math.nan, None, None, 1.0, 0, unit)
    return Gap(*interval(differences), sign_flip(differences), len(differences), unit)


def refusal(arm: str, way: str = EVERYWHERE) -> Measure:
    """Return the measure "refusal rate on test at the layer chosen on validation"."""
    return lambda row: row["arms"][arm][way]["test"]["refusal"]


def at_layer(arm: str, layer: int, way: str = EVERYWHERE) -> Measure:
    """Return the measure "refusal rate on validation at this layer"."""
    return lambda row: next((c["refusal"] for c in row["arms"][arm][way]["cells"] if c["layer"] == layer), None)


def log_kl(arm: str) -> Measure:
    """Return the measure "log10 of the KL at the chosen layer, taken out everywhere"."""
    return lambda row: math.log10(max(row["arms"][arm][EVERYWHERE]["test"]["kl"], LEAST_KL))


def log_matched_kl(arm: str) -> Measure:
    """Return the measure "log10 of the KL at equal refusal, taken out everywhere"; None where the arm never gets there."""

    def measure(row: Row) -> float | None:
        found = row["arms"][arm][EVERYWHERE]["matched_kl"]
        return None if found is None else math.log10(max(found, LEAST_KL))

    return measure


def minus(a: Measure, b: Measure) -> Measure:
    """Return the difference of two measures."""

    def measure(row: Row) -> float | None:
        first, second = a(row), b(row)
        return None if first is None or second is None else first - second

    return measure


def nothing(_row: Row) -> float:
    return 0.0


def geometric(rows: Sequence[Row], name: str) -> list[float]:
    """Return a quantity of the geometry by layer, averaged over organisms."""
    return np.mean([row["geometry"][name] for row in rows], axis=0).tolist()


def fails(rows: Sequence[Row], arm: str, way: str) -> str:
    """Return on how many organisms an arm fails."""
    return f"{sum((refusal(arm, way)(row) or 0) > FAILS for row in rows)} of {len(rows)}"


AGAINST: Mapping[Verdict, str] = {
    "higher": "leaves more refusals than",
    "lower": "leaves fewer refusals than",
    "alike": "leaves as many refusals as",
    "open": "cannot be told from",
}


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return every claim about these organisms, in the order of the questions."""
    return [
        does_it_fail(rows),
        under_the_papers_protocol(rows),
        where(rows),
        norm(rows),
        signal(rows),
        sizes(rows),
        position(rows),
        number(rows),
        topic(rows),
        harmless_mean(rows),
        mixture(rows),
        controls(rows),
        *proposals(rows),
    ]


def does_it_fail(rows: Sequence[Row]) -> Claim:
    found = {way: gap(rows, refusal(M, way), refusal(U, way)) for way in (EVERYWHERE, ALONE)}
    parts = [
        f"{name}, the matched direction {AGAINST[found[way].verdict]} the unmatched one: {found[way]}; "
        f"it fails (over {FAILS:.0%} refusals) on {fails(rows, M, way)} organisms, the unmatched one on {fails(rows, U, way)}"
        for way, name in WAYS.items()
    ]
    text = f"At norm 1, one difference of means, last token: {parts[0]}. {parts[1][0].upper()}{parts[1][1:]}."
    return Claim("Does matched contrast fail?", text, "contrast_layers", "test_failure_is_told_from_success", found)


def under_the_papers_protocol(rows: Sequence[Row]) -> Claim:
    """Maps, one direction a class, norms as they come, one layer at a time."""
    raw = gap(rows, refusal("matched/som/raw_norm", ALONE), refusal("unmatched/som/raw_norm", ALONE))
    unit = gap(rows, refusal("matched/som", ALONE), refusal("unmatched/som", ALONE))
    svd = gap(rows, refusal("matched/som_svd", ALONE), refusal("unmatched/som", ALONE))
    seen = {"higher": "is reproduced", "lower": "is reversed", "alike": "is not there", "open": "is not settled"}
    text = (
        "Maps with one direction a class, one layer at a time, weight 1.2, which is the second paper's protocol: its finding "
        f"(matched directions inert, unmatched ones working) {seen[raw.verdict]} with norms as they come ({raw}), "
        f"{seen[unit.verdict]} at norm 1 ({unit}), and "
        f"{seen[svd.verdict]} for matched directions made orthogonal ({svd}; removed jointly at norm 1 they "
        "span what they spanned before, so this is the same edit)."
    )
    return Claim(
        "And in the second paper's own protocol?",
        text,
        "contrast_causes",
        "test_the_papers_finding_can_come_out_either_way",
        {"raw": raw, "unit": unit, "svd": svd},
    )


def where(rows: Sequence[Row]) -> Claim:
    layers = range(len(rows[0]["geometry"]["cosine"]))
    found = {str(layer): gap(rows, at_layer(M, layer), at_layer(U, layer)) for layer in layers}
    means = {arm: [np.mean([at_layer(arm, layer)(row) for row in rows]) for layer in layers] for arm in (M, U)}
    only = {
        "matched fails and unmatched does not": [i for i in layers if means[M][i] > FAILS >= means[U][i]],
        "unmatched fails and matched does not": [i for i in layers if means[U][i] > FAILS >= means[M][i]],
        "both fail": [i for i in layers if min(means[M][i], means[U][i]) > FAILS],
        "neither fails": [i for i in layers if max(means[M][i], means[U][i]) <= FAILS],
    }
    told = "; ".join(f"{name} at layers {', '.join(map(str, found))}" for name, found in only.items() if found)
    ratios = [m / u for m, u in zip(geometric(rows, "norm_matched"), geometric(rows, "norm_unmatched"), strict=True)]
    text = (
        f"By source layer, taken out everywhere: {told}. The norm of the matched difference over that of the unmatched one is "
        f"{', '.join(f'{r:.2g}' for r in ratios)} at layers 0 to {len(ratios) - 1}."
    )
    return Claim("Where?", text, "contrast_layers", "test_layers_are_sorted_by_who_fails", found)


def norm(rows: Sequence[Row]) -> Claim:
    arms = {"difference of means": M, "class means": "matched/class_means", "maps": "matched/som"}
    found = {name: gap(rows, refusal(f"{arm}/raw_norm", ALONE), refusal(arm, ALONE)) for name, arm in arms.items()}
    rest = gap(rows, refusal(f"{M}/raw_norm", ALONE), refusal(U, ALONE))
    told = {"higher": "is a cause", "lower": "is no cause, it helps", "alike": "is no cause", "open": "is not shown to be a cause"}
    per = "; ".join(f"{name} {g}" for name, g in found.items())
    text = (
        f"The small norm {told[found['difference of means'].verdict]}: with norms as they come "
        f"instead of norm 1, one layer at a time, the matched arms change their refusals by: {per}. With its own norm the matched "
        f"difference {AGAINST[rest.verdict]} the unmatched one ({rest})."
    )
    return Claim(
        "(a) Is it the norm?",
        text,
        "contrast_causes",
        "test_norm_is_blamed_only_where_it_costs",
        {**found, "raw matched against unmatched": rest},
    )


def signal(rows: Sequence[Row]) -> Claim:
    layers = range(first_tuned(rows), len(rows[0]["geometry"]["cosine"]))

    def later(name: str) -> Measure:
        return lambda row: float(np.mean([row["geometry"][name][layer] for layer in layers]))

    found = {f"{n} prompts {way}": loses_more(rows, f"n{n}", way) for way in WAYS for n in FEW}
    halves, purity = (gap(rows, later(f"{name}_matched"), later(f"{name}_unmatched"), "cosine") for name in ("split_half", "purity"))
    told = {
        "higher": "is a cause",
        "lower": "is no cause: unmatched suffers more",
        "alike": "is no cause",
        "open": "is not shown to be a cause",
    }
    per = "; ".join(
        f"{name}, noise {told[found[f'{FEW[0]} prompts {way}'].verdict]} (matched loses "
        f"{found[f'{FEW[0]} prompts {way}']} more than unmatched with {FEW[0]} prompts a side instead of "
        f"all, {found[f'{FEW[1]} prompts {way}']} with {FEW[1]})"
        for way, name in WAYS.items()
    )
    text = (
        f"{per[0].upper()}{per[1:]}. Split-half cosines from the first tuned layer on are {_mean(rows, later('split_half_matched')):.2f} "
        f"matched and {_mean(rows, later('split_half_unmatched')):.2f} unmatched (difference {halves}); cosines with what safety "
        f"tuning added to the stream are {_mean(rows, later('purity_matched')):.2f} and {_mean(rows, later('purity_unmatched')):.2f} "
        f"(difference {purity}): the matched direction is {PURER[side(purity)]}."
    )
    test = "test_noise_is_blamed_only_where_few_prompts_cost_more"
    return Claim("(b) Is it signal to noise?", text, "contrast_geometry", test, {**found, "split half": halves, "purity": purity})


FEW = (12, 48)
PURER = {"above": "the purer one", "below": "the less pure one", "open": "not shown to be purer"}


def side(found: Gap) -> Literal["above", "below", "open"]:
    """Return on which side of 0 the whole interval lies."""
    if found.low is None or found.high is None:
        return "open"
    return "above" if found.low > 0 else "below" if found.high < 0 else "open"


def loses_more(rows: Sequence[Row], variant: str, way: str) -> Gap:
    """Return how much more refusals rise for matched than for unmatched under a variant: a difference of differences."""
    rises = [minus(refusal(f"{arm}/{variant}", way), refusal(arm, way)) for arm in (M, U)]
    return gap(rows, *rises)


def sizes(rows: Sequence[Row]) -> Claim:
    found = {way: gap(rows, refusal("dealt/class_means", way), refusal("unmatched/class_means", way)) for way in WAYS}
    told = {"higher": "costs", "lower": "gains", "alike": "changes nothing", "open": "is not shown to matter"}
    text = (
        "Unmatched prompts dealt out to the classes at random, so that every class mean rests on as few prompts as a matched one, against "
        f"one mean of all: smaller samples {' and '.join(f'{told[g.verdict]} {WAYS[way]} ({g})' for way, g in found.items())}."
    )
    return Claim("(b) Or the smaller samples of class means?", text, "contrast_causes", "test_sample_sizes_are_judged_by_dealing", found)


def position(rows: Sequence[Row]) -> Claim:
    found = {f"{place} {way}": loses_more(rows, place, way) for way in WAYS for place in POSITIONS}
    rises = {
        f"{arm.split('/')[0]} {place} {way}": gap(rows, refusal(f"{arm}/{place}", way), refusal(arm, way))
        for way in WAYS
        for place in POSITIONS
        for arm in (M, U)
    }
    told = {
        "higher": "matched suffers more",
        "lower": "unmatched suffers more",
        "alike": "both suffer alike",
        "open": "which suffers more is open",
    }
    parts = [
        f"read at `{place}` instead of the last token and {WAYS[way]}, matched leaves {rises[f'matched {place} {way}']} more and unmatched "
        f"{rises[f'unmatched {place} {way}']} more; {told[found[f'{place} {way}'].verdict]} ({found[f'{place} {way}']})"
        for way in WAYS
        for place in POSITIONS
    ]
    text = " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)
    return Claim("(c) Is it the position?", text, "contrast_causes", "test_position_compares_both_baselines", {**rises, **found})


POSITIONS = ("last_user", "mean")


def number(rows: Sequence[Row]) -> Claim:
    found = {
        f"{b} {way}": gap(rows, refusal(f"{b}/class_means", way), refusal(f"{b}/mean_difference", way))
        for b in ("matched", "unmatched")
        for way in WAYS
    }
    drift = {f"{b} KL": gap(rows, log_kl(f"{b}/class_means"), log_kl(f"{b}/mean_difference"), "log KL") for b in ("matched", "unmatched")}
    told = {"higher": "more refusals", "lower": "fewer refusals", "alike": "the same refusals", "open": "no clear difference"}
    parts = "; ".join(f"{name}, {told[g.verdict]} ({g})" for name, g in found.items())
    kl = "; ".join(f"{name.split()[0]} {g}" for name, g in drift.items())
    text = f"One direction a class instead of one in all leaves: {parts}. At the chosen layer it costs: {kl}."
    return Claim(
        "(d) Is it the number of directions?",
        text,
        "contrast_causes",
        "test_number_of_directions_is_read_for_both_baselines",
        {**found, **drift},
    )


def topic(rows: Sequence[Row]) -> Claim:
    strengths = sorted({row["topic"] for row in rows})
    of = {t: [row for row in rows if row["topic"] == t] for t in strengths}
    found = {f"{t:g}": gap(of[t], refusal(M, ALONE), refusal(U, ALONE)) for t in strengths}
    advantage = [(row["topic"], _number(minus(refusal(M, ALONE), refusal(U, ALONE))(row))) for row in rows]
    foreign = {f"{t:g}": float(np.mean([row["foreign_refusal"] for row in of[t]])) for t in strengths}
    per = "; ".join(f"at {t}, {g}" for t, g in found.items())
    text = (
        f"Requests with words of two topics (intent without topic) are refused to {_listed(foreign)} at topic strength "
        f"{', '.join(foreign)}. "
        f"Matched less unmatched refusals, one layer at a time: {per}. "
        f"{_trend(advantage, 'topic strength', 'the stronger the topic, the {} matched does')}"
    )
    return Claim(
        "(e) Is it refusal learnt as topic and intent together?", text, "contrast_topic", "test_topic_trend_is_told_by_its_interval", found
    )


def _trend(pairs: Sequence[tuple[float, float]], of: str, told: str) -> str:
    """Return the rank correlation of refusals with a dose as a sentence; `told` has a place for "better" or "worse"."""
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    if len(pairs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return "No trend can be computed."
    rho = spearman(xs, ys)
    says = told.format("worse") if rho.low > 0 else told.format("better") if rho.high < 0 else "no trend is shown"
    return f"Rank correlation with the {of} {rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f}, n {rho.n}): {says}."


def harmless_mean(rows: Sequence[Row]) -> Claim:
    arms = [f"{b}/{method}" for b in ("unmatched", "matched") for method in ("mean_difference", "class_means")]
    found = {f"{arm} {way}": gap(rows, refusal(f"{arm}/projected", way), refusal(arm, way)) for arm in arms for way in WAYS}
    drift = {f"{arm} KL": gap(rows, log_kl(f"{arm}/projected"), log_kl(arm), "log KL") for arm in arms}
    lower = [name for name, g in found.items() if g.verdict == "lower"]
    helps = f"helps ({', '.join(lower)})" if lower else "lowers no arm's refusals"
    parts = "; ".join(f"{name} {g}" for name, g in {**found, **drift}.items())
    text = f"Projecting the harmless mean out {helps}: {parts}."
    test = "test_the_harmless_mean_is_blamed_only_where_its_loss_helps"
    return Claim("(f) Is it the harmless mean?", text, "contrast_causes", test, {**found, **drift})


SHARES = {0.0: U, 0.25: "mixed/0.25", 0.5: "mixed/0.5", 0.75: "mixed/0.75", 1.0: M}


def mixture(rows: Sequence[Row]) -> Claim:
    """More on-topic prompts in the baseline: the dose between both contrasts, each organism against its own unmatched arm."""
    found = {f"{share:g}": gap(rows, refusal(arm, ALONE), refusal(U, ALONE)) for share, arm in SHARES.items() if share}
    doses = [(share, _number(minus(refusal(arm, ALONE), refusal(U, ALONE))(row))) for row in rows for share, arm in SHARES.items()]
    per = "; ".join(f"{share} {g}" for share, g in found.items())
    text = (
        f"Refusals by the share of on-topic prompts in what is subtracted, less those at share 0, {WAYS[ALONE]}: {per}. "
        f"{_trend(doses, 'share of on-topic prompts', 'the more on-topic prompts, the {} it does')}"
    )
    return Claim("How much of it must be matched?", text, "contrast_causes", "test_the_dose_of_matching_is_told_by_its_trend", found)


CONTROLS = {"unmatched/random": U, "unmatched/random_classes": "unmatched/class_means"}


def controls(rows: Sequence[Row]) -> Claim:
    found = {f"{arm} {way}": gap(rows, refusal(arm, way), refusal(of, way)) for arm, of in CONTROLS.items() for way in WAYS}
    weak = [name for name, g in found.items() if g.verdict != "higher"]
    told = (
        "leave more refusals than what they are the control of" if not weak else f"are NOT told from what they control in {', '.join(weak)}"
    )
    left = "; ".join(f"{arm} {fails(rows, arm, EVERYWHERE)} everywhere, {fails(rows, arm, ALONE)} alone" for arm in CONTROLS)
    text = f"Random directions of the same number {told} ({'; '.join(f'{name} {g}' for name, g in found.items())}). They fail on: {left}."
    return Claim("Would any direction have done?", text, "contrast_causes", "test_controls_must_fail", found)


PROPOSED = {
    "topic_free": "unmatched, topic means projected out",
    "topic_ridge": "unmatched, topic means shrunk out",
    "blend": "both, weighed by split-half cosine",
    "precision": "matched class means, pooled by precision",
    "whitened": "matched, whitened",
}


def proposals(rows: Sequence[Row]) -> list[Claim]:
    """Return a claim for each proposed baseline: against both parents, refusals one layer at a time and KL at equal refusal."""
    rescaled = gap(rows, refusal(M, ALONE), refusal(f"{M}/raw_norm", ALONE))
    better = {"higher": "is worse than with", "lower": "is better than with", "alike": "does as with", "open": "is not told from that with"}
    first = Claim(
        "The open question: unmatched magnitude, matched purity",
        f"The matched direction at the unmatched norm, which is what an edit at norm 1 makes of it, {better[rescaled.verdict]} "
        f"its own norm, one layer at a time: {rescaled}.",
        "contrast_proposals",
        "test_a_proposal_wins_only_where_it_does",
        {"rescaled": rescaled},
    )
    return [first, *(_proposal(rows, name, label) for name, label in PROPOSED.items())]


def _proposal(rows: Sequence[Row], name: str, label: str) -> Claim:
    arm, found = f"proposed/{name}", {}
    for parent in (U, M):
        baseline = parent.split("/")[0]
        found[f"{baseline} alone"] = gap(rows, refusal(arm, ALONE), refusal(parent, ALONE))
        found[f"{baseline} everywhere"] = gap(rows, refusal(arm), refusal(parent))
        found[f"{baseline} KL"] = gap(rows, log_matched_kl(arm), log_matched_kl(parent), "log KL")
    verdicts = {key: g.verdict for key, g in found.items()}
    worse, better = ([k for k, v in verdicts.items() if v == word] for word in ("higher", "lower"))
    beaten = {b for b in ("unmatched", "matched") if any(k.startswith(b) for k in better) and not any(k.startswith(b) for k in worse)}
    told = (
        "beats both parents"
        if len(beaten) == 2
        else f"beats {beaten.pop()} only"
        if beaten
        else "is worse than a parent"
        if worse
        else "beats neither parent"
    )
    parts = "; ".join(f"{key} {g}" for key, g in found.items())
    reached = sum(row["arms"][arm][EVERYWHERE]["matched_kl"] is not None for row in rows)
    text = f"`{name}` ({label}) {told}. Against {parts}. It gets down to 5 % refusals everywhere on {reached} of {len(rows)} organisms."
    return Claim(f"Proposal: {name}", text, "contrast_proposals", "test_a_proposal_wins_only_where_it_does", found)


def first_tuned(rows: Sequence[Row]) -> int:
    """Return the first layer after which safety tuning changed the stream."""
    return next(i for i, norm in enumerate(rows[0]["geometry"]["added_norm"]) if norm > 0)


def _mean(rows: Sequence[Row], measure: Measure) -> float:
    return float(np.mean([measure(row) for row in rows]))


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values.values())
