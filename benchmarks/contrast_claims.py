"""What the contrast experiment says: every sentence is chosen by a test on the rows of the organisms, none is written by hand.

An organism is one unit. A gap is the paired difference of two arms over organisms, with Student's 95 % interval and the exact sign-flip
test. It is called higher or lower where its interval leaves out 0 and the test is below 5 %, alike where the interval lies inside a margin
(`MARGINS`), no higher or no lower where one end of it does, and open otherwise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from resect.config import SRAConfig
from resect.directions.whitened import SHRINKAGE
from resect.evaluation.statistics import holm, spearman

Row = Mapping[str, Any]
Measure = Callable[[Row], float | None]
Verdict = Literal["higher", "lower", "alike", "no higher", "no lower", "open"]

EVERYWHERE, ALONE = "everywhere", "alone"
WAYS = {EVERYWHERE: "taken out everywhere", ALONE: "taken out of one layer"}
MARGINS = {"refusal": 0.1, "log KL": math.log10(1.5), "cosine": 0.05}
FAILS = 0.5  # an arm that leaves more refusals than this has failed
SURE = 0.05
FLOOR = 0.02  # refusals left at or below which nothing can be lower
SEEN = 3  # the seed whose first organism had been looked at when the arms were settled
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
        above, below = self.low >= -margin, self.high <= margin
        if above and below:
            return "alike"
        if self.p < SURE and (self.low > 0 or self.high < 0):
            return "higher" if self.low > 0 else "lower"
        return "no higher" if below else "no lower" if above else "open"

    def __str__(self) -> str:
        return f"{self.shown(self.value)}, {self.span}"

    @property
    def span(self) -> str:
        """The interval in words."""
        return "no interval" if self.low is None or self.high is None else f"{self.number(self.low)} to {self.shown(self.high)}"

    def shown(self, value: float) -> str:
        """Return a value of this gap with its unit: points of refusals, a ratio of KL, or a cosine."""
        return f"{self.number(value)} points" if self.unit == "refusal" and not math.isnan(value) else self.number(value)

    def number(self, value: float) -> str:
        """Return the same without the word points; differences of rates end at 100 of them."""
        if math.isnan(value):
            return "not reached"
        if self.unit == "log KL":
            return f"x {10**value:,.0f}" if value >= 2 else f"x {10**value:.2g}"
        return f"{value:+.2f}" if self.unit == "cosine" else f"{round(100 * min(1.0, max(-1.0, value))) + 0:+d}"


@dataclass(frozen=True)
class Claim:
    """A sentence, the question it answers, the figure that shows it, the test of the code that made it, and its gaps, main one first."""

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


def by_seed(rows: Sequence[Row], first: Measure, second: Measure) -> Gap:
    """Return first - second over seeds, each the mean of its organisms: these share words and random numbers, seeds share nothing."""
    seeds = [[row for row in rows if row["seed"] == seed] for seed in sorted({row["seed"] for row in rows})]
    means = [gap(found, first, second).value for found in seeds]
    return Gap(*interval(means), sign_flip(means), len(means))


def family(gaps: Mapping[str, Gap]) -> dict[str, Gap]:
    """Return the gaps that answer one question with p-values adjusted over them (Holm)."""
    adjusted = holm([g.p for g in gaps.values()])
    return {name: replace(g, p=p) for (name, g), p in zip(gaps.items(), adjusted, strict=True)}


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
    "no higher": "leaves no more refusals than",
    "no lower": "leaves no fewer refusals than",
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
    found = family({f"matched less unmatched, {way}": gap(rows, refusal(M, way), refusal(U, way)) for way in (ALONE, EVERYWHERE)})
    unseen = [row for row in rows if row["seed"] != SEEN]
    fresh = {f"the same without seed {SEEN}, {way}": gap(unseen, refusal(M, way), refusal(U, way)) for way in (ALONE, EVERYWHERE)}
    seeds = {f"the same, each seed one unit, {way}": by_seed(rows, refusal(M, way), refusal(U, way)) for way in (ALONE, EVERYWHERE)}
    said = {f"by whole responses, {way}": gap(rows, spoken(M, way), spoken(U, way)) for way in (ALONE, EVERYWHERE)}
    drift = gap(rows, log_matched_kl(M), log_matched_kl(U), "log KL")
    back = gap(rows, recovery(M), recovery(U))
    parts = [
        f"{name}, the matched direction {AGAINST[found[f'matched less unmatched, {way}'].verdict]} the unmatched one "
        f"({found[f'matched less unmatched, {way}']}) and fails on {fails(rows, M, way)} organisms, the unmatched one on "
        f"{fails(rows, U, way)}"
        for way, name in WAYS.items()
    ]
    text = (
        f"One difference of means at norm 1, read at the last token. {_sentences(parts)} Everywhere, at 5 % refusals, its KL is "
        f"{KL[drift.verdict]} ({drift}); at weight 1 it gives back {_mean(rows, recovery(M)):.0%} of the helpful twin's answers, the "
        f"unmatched one {_mean(rows, recovery(U)):.0%} ({back}). The first token is not the whole answer: by markers on whole responses, "
        f"one layer at a time, the matched direction leaves {_mean(rows, spoken(M, ALONE)):.0%} and the unmatched one "
        f"{_mean(rows, spoken(U, ALONE)):.0%} (by the first token {_mean(rows, refusal(M, ALONE)):.0%} and "
        f"{_mean(rows, refusal(U, ALONE)):.0%}).{_floor(rows)}"
    )
    gaps = {
        **found,
        **family(fresh),
        **family(seeds),
        **family(said),
        "KL at 5 % refusals, everywhere": drift,
        "answers given back, everywhere": back,
    }
    return Claim("Does matched contrast fail?", text, "contrast_layers", "test_failure_is_told_from_success", gaps)


def _floor(rows: Sequence[Row]) -> str:
    """Say where two arms are alike because neither leaves anything."""
    left = max(_mean(rows, refusal(arm, EVERYWHERE)) for arm in (U, M))
    if left > FLOOR:
        return ""
    return (
        f" Everywhere neither plain arm leaves more than {FLOOR:.0%} of the refusals: there *alike* says that both work, here and below, "
        "and not that they are equal."
    )


def spoken(arm: str, way: str) -> Measure:
    """Return the measure "refusal rate of whole responses on test, by markers"."""
    return lambda row: row["arms"][arm][way]["spoken_refusal"]


def recovery(arm: str) -> Measure:
    """Return the measure "share of the helpful twin's answers to harmful prompts given back, word for word"."""
    return lambda row: row["arms"][arm][EVERYWHERE]["recovery"]


def under_the_papers_protocol(rows: Sequence[Row]) -> Claim:
    """Maps, one direction a class, norms as they come, one layer at a time."""
    found = family(
        {
            "matched less unmatched, norms as they come": gap(
                rows, refusal("matched/som/raw_norm", ALONE), refusal("unmatched/som/raw_norm", ALONE)
            ),
            "at norm 1": gap(rows, refusal("matched/som", ALONE), refusal("unmatched/som", ALONE)),
            "matched made orthogonal, at norm 1": gap(rows, refusal("matched/som_svd", ALONE), refusal("unmatched/som", ALONE)),
        }
    )
    seen = {"higher": "is reproduced", "lower": "is reversed", "alike": "is not there", "no higher": "is not there"}
    told = [f"{seen.get(g.verdict, 'is not settled')} ({name}: {g})" for name, g in found.items()]
    text = (
        "Self-organising maps, one direction a class, one layer at a time, weight 1.2. The paper's finding, matched directions inert and "
        f"unmatched ones working, {told[0]}, {told[1]}, and {told[2]}. Removed jointly at norm 1, orthogonal directions span what the maps "
        f"spanned, so the last two are one edit. Matched maps fail on {fails(rows, 'matched/som/raw_norm', ALONE)} organisms, unmatched "
        f"ones on "
        f"{fails(rows, 'unmatched/som/raw_norm', ALONE)} (norms as they come)."
    )
    test = "test_the_papers_finding_can_come_out_either_way"
    return Claim("And in the second paper's own protocol?", text, "contrast_causes", test, found)


def where(rows: Sequence[Row]) -> Claim:
    layers = range(len(rows[0]["geometry"]["cosine"]))
    found = family({f"layer {i}": gap(rows, at_layer(M, i), at_layer(U, i)) for i in layers})
    means = {arm: [np.mean([at_layer(arm, layer)(row) for row in rows]) for layer in layers] for arm in (M, U)}
    only = {
        "matched fails and unmatched does not": [i for i in layers if means[M][i] > FAILS >= means[U][i]],
        "unmatched fails and matched does not": [i for i in layers if means[U][i] > FAILS >= means[M][i]],
        "both fail": [i for i in layers if min(means[M][i], means[U][i]) > FAILS],
        "neither fails": [i for i in layers if max(means[M][i], means[U][i]) <= FAILS],
    }
    told = "; ".join(f"{name} at layers {', '.join(map(str, found))}" for name, found in only.items() if found)
    ratios = np.median([norm_ratios(row) for row in rows], axis=0)
    cosines = np.median([row["geometry"]["cosine"] for row in rows], axis=0)
    text = (
        f"By source layer, everywhere, on average over organisms: {told}. The matched norm over the unmatched one is (median) "
        f"{', '.join(f'{r:.2g}' for r in ratios)} at layers 0 to {len(ratios) - 1}, their cosine "
        f"{', '.join(f'{c:.2f}' for c in cosines)}; safety tuning changed nothing before layer "
        f"{first_tuned(rows)}."
    )
    main = dict(sorted(found.items(), key=lambda item: item[0] != f"layer {first_tuned(rows)}"))
    return Claim("Where?", text, "contrast_layers", "test_layers_are_sorted_by_who_fails", main)


def norm_ratios(row: Row) -> list[float]:
    """Return the norm of the matched difference over that of the unmatched one, by layer."""
    return [m / u for m, u in zip(row["geometry"]["norm_matched"], row["geometry"]["norm_unmatched"], strict=True)]


CAUSE: Mapping[Verdict, str] = {
    "higher": "is a cause",
    "lower": "is no cause, it helps",
    "alike": "is no cause",
    "no higher": "is no cause",
    "no lower": "is not shown to be a cause",
    "open": "is not shown to be a cause",
}


def norm(rows: Sequence[Row]) -> Claim:
    arms = {"difference of means": M, "class means": "matched/class_means", "maps": "matched/som"}
    found = family(
        {
            f"own norm less norm 1, {name}, {way}": gap(rows, refusal(f"{arm}/raw_norm", way), refusal(arm, way))
            for way in (ALONE, EVERYWHERE)
            for name, arm in arms.items()
        }
    )
    rest = gap(rows, refusal(f"{M}/raw_norm", ALONE), refusal(U, ALONE))
    main = next(iter(found.values()))
    text = (
        f"The small norm {CAUSE[main.verdict]}: one layer at a time the matched difference of means with its own norm, instead of norm 1, "
        f"changes refusals by {main}. With its own norm it {AGAINST[rest.verdict]} the unmatched one ({rest})."
    )
    test = "test_norm_is_blamed_only_where_it_costs"
    return Claim("(a) Is it the norm?", text, "contrast_causes", test, {**found, "matched with its own norm less unmatched, alone": rest})


def signal(rows: Sequence[Row]) -> Claim:
    layers = range(first_tuned(rows), len(rows[0]["geometry"]["cosine"]))

    def later(name: str) -> Measure:
        return lambda row: float(np.mean([row["geometry"][name][layer] for layer in layers]))

    found = family(
        {
            f"matched loses more than unmatched with {n} prompts, {way}": loses_more(rows, f"n{n}", way)
            for way in (ALONE, EVERYWHERE)
            for n in FEW
        }
    )
    halves, purity = (gap(rows, later(f"{name}_matched"), later(f"{name}_unmatched"), "cosine") for name in ("split_half", "purity"))
    parts = [
        f"{name}, noise {NOISE[found[f'matched loses more than unmatched with {FEW[0]} prompts, {way}'].verdict]} "
        f"({found[f'matched loses more than unmatched with {FEW[0]} prompts, {way}']})"
        for way, name in WAYS.items()
    ]
    text = (
        f"What matched loses more than unmatched when {FEW[0]} prompts a side are used instead of all. {_sentences(parts)} Split-half "
        f"cosines from "
        f"layer {first_tuned(rows)} on are {_mean(rows, later('split_half_matched')):.2f} matched and "
        f"{_mean(rows, later('split_half_unmatched')):.2f} unmatched ({halves}). Cosines with what safety tuning added to the stream on "
        f"harmful "
        f"prompts are {_mean(rows, later('purity_matched')):.2f} and {_mean(rows, later('purity_unmatched')):.2f} ({purity}): the matched "
        f"direction "
        f"is {PURER.get(purity.verdict, 'not shown to be purer')}."
    )
    test = "test_noise_is_blamed_only_where_few_prompts_cost_more"
    return Claim("(b) Is it signal to noise?", text, "contrast_geometry", test, {**found, "split-half cosine": halves, "purity": purity})


FEW = (12, 48)
NOISE = {**CAUSE, "lower": "is no cause: unmatched suffers more"}
PURER = {"higher": "the purer one", "lower": "the less pure one", "alike": "as pure as the other"}


def loses_more(rows: Sequence[Row], variant: str, way: str) -> Gap:
    """Return how much more refusals rise for matched than for unmatched under a variant: a difference of differences."""
    rises = [minus(refusal(f"{arm}/{variant}", way), refusal(arm, way)) for arm in (M, U)]
    return gap(rows, *rises)


def sizes(rows: Sequence[Row]) -> Claim:
    found = family(
        {
            f"dealt less whole, {way}": gap(rows, refusal("dealt/class_means", way), refusal("unmatched/class_means", way))
            for way in (ALONE, EVERYWHERE)
        }
    )
    drift = gap(rows, log_kl("dealt/class_means"), log_kl("unmatched/class_means"), "log KL")
    told = {"higher": "costs refusals", "lower": "gains", "alike": "changes no refusals"}
    parts = [
        f"{name}, dealing {told.get(found[f'dealt less whole, {way}'].verdict, 'is not shown to change refusals')} "
        f"({found[f'dealt less whole, {way}']})"
        for way, name in WAYS.items()
    ]
    text = (
        "Unmatched prompts dealt out to the classes at random, so that every class mean rests on as few prompts as a matched one, against "
        "one "
        f"mean of all. {_sentences(parts)} Its KL at the chosen layer, everywhere, is {KL[drift.verdict]} ({drift})."
    )
    test = "test_sample_sizes_are_judged_by_dealing"
    return Claim("(b) Or the smaller samples of class means?", text, "contrast_causes", test, {**found, "KL": drift})


KL: Mapping[Verdict, str] = {
    "higher": "larger",
    "lower": "smaller",
    "alike": "the same",
    "no higher": "no larger",
    "no lower": "no smaller",
    "open": "not told apart",
}


def position(rows: Sequence[Row]) -> Claim:
    found = family(
        {
            f"matched loses more than unmatched at {place}, {way}": loses_more(rows, place, way)
            for way in (EVERYWHERE, ALONE)
            for place in POSITIONS
        }
    )
    rises = family(
        {
            f"{arm.split('/')[0]} at {place} less at last, {way}": gap(rows, refusal(f"{arm}/{place}", way), refusal(arm, way))
            for way in (EVERYWHERE, ALONE)
            for place in POSITIONS
            for arm in (M, U)
        }
    )
    told = {
        "higher": "matched suffers more",
        "lower": "unmatched suffers more",
        "alike": "both suffer alike",
        "no higher": "matched suffers no more",
    }
    parts = [
        f"{WAYS[way]}, read at `{place}` instead of the last token, refusals change by {rises[f'matched at {place} less at last, {way}']} "
        f"(matched) "
        f"and {rises[f'unmatched at {place} less at last, {way}']} (unmatched): "
        f"{told.get(found[f'matched loses more than unmatched at {place}, {way}'].verdict, 'which suffers more is open')}"
        for way in WAYS
        for place in POSITIONS
    ]
    test = "test_position_compares_both_baselines"
    return Claim("(c) Is it the position?", _sentences(parts), "contrast_causes", test, {**found, **rises})


POSITIONS = ("last_user", "mean")


def number(rows: Sequence[Row]) -> Claim:
    found = family(
        {
            f"{b} class means less one mean, {way}": gap(rows, refusal(f"{b}/class_means", way), refusal(f"{b}/mean_difference", way))
            for way in (ALONE, EVERYWHERE)
            for b in ("matched", "unmatched")
        }
    )
    drift = family(
        {
            f"{b} KL, {method}": gap(rows, log_kl(f"{b}/{method}"), log_kl(f"{b}/mean_difference"), "log KL")
            for method in ("class_means", "som")
            for b in ("matched", "unmatched")
        }
    )
    told = {"higher": "more refusals", "lower": "fewer refusals", "alike": "the same refusals", "no higher": "no more refusals"}
    parts = "; ".join(f"{name}: {told.get(g.verdict, 'no clear difference')} ({g})" for name, g in found.items() if name.endswith(ALONE))
    costs = "; ".join(f"{name}, {KL[g.verdict]} ({g})" for name, g in drift.items())
    text = (
        f"One direction a class (six) instead of one in all leaves, one layer at a time, {parts}. What it costs everywhere, as KL at the "
        f"chosen "
        f"layer over that of one direction: {costs}."
    )
    test = "test_number_of_directions_is_read_for_both_baselines"
    return Claim("(d) Is it the number of directions?", text, "contrast_causes", test, {**found, **drift})


def topic(rows: Sequence[Row]) -> Claim:
    strengths = sorted({row["topic"] for row in rows})
    of = {t: [row for row in rows if row["topic"] == t] for t in strengths}
    found = family(
        {f"matched less unmatched at {t:g}, alone": gap(of[t], refusal(M, ALONE), refusal(U, ALONE)) for t in reversed(strengths)}
    )
    advantage = [(row["topic"], _number(minus(refusal(M, ALONE), refusal(U, ALONE))(row))) for row in rows]
    difficulty = [(row["topic"], _number(refusal(M, ALONE)(row))) for row in rows]
    stronger = "the stronger the topic, the {} matched does"
    foreign = {f"{t:g}": float(np.mean([row["foreign_refusal"] for row in of[t]])) for t in strengths}
    text = (
        f"Requests with words of two topics (intent without topic) are refused to {_listed(foreign)} at topic strength "
        f"{', '.join(foreign)}. "
        f"Matched less unmatched refusals, one layer at a time: {_trend(advantage, 'topic strength', f'{stronger} against unmatched')} "
        f"Matched refusals themselves: {_trend(difficulty, 'topic strength', stronger)}"
    )
    test = "test_topic_trend_is_told_by_its_interval"
    return Claim("(e) Is it refusal learnt as topic and intent together?", text, "contrast_topic", test, found)


def _trend(pairs: Sequence[tuple[float, float]], of: str, told: str) -> str:
    """Return the rank correlation of refusals with a dose as a sentence; `told` has a place for "better" or "worse"."""
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    if len(pairs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return "no trend can be computed."
    rho = spearman(xs, ys)
    says = told.format("worse") if rho.low > 0 else told.format("better") if rho.high < 0 else "no trend is shown"
    return f"rank correlation with {of} {rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f}, n {rho.n}), {says}."


def harmless_mean(rows: Sequence[Row]) -> Claim:
    arms = [f"{b}/{method}" for b in ("matched", "unmatched") for method in ("mean_difference", "class_means")]
    found = family(
        {
            f"{arm} projected less plain, {way}": gap(rows, refusal(f"{arm}/projected", way), refusal(arm, way))
            for way in (ALONE, EVERYWHERE)
            for arm in arms
        }
    )
    drift = family({f"{arm} KL": gap(rows, log_kl(f"{arm}/projected"), log_kl(arm), "log KL") for arm in arms})
    lower, higher = ([name for name, g in found.items() if g.verdict == word] for word in ("lower", "higher"))
    helps = f"helps ({'; '.join(f'{name}: {found[name]}' for name in lower)})" if lower else "lowers no arm's refusals"
    costs = f", and costs ({'; '.join(f'{name}: {found[name]}' for name in higher)})" if higher else ""
    text = (
        f"Projecting the harmless mean out of the directions {helps}{costs}. The matched difference of means: {next(iter(found.values()))}."
    )
    test = "test_the_harmless_mean_is_blamed_only_where_its_loss_helps"
    return Claim("(f) Is it the harmless mean?", text, "contrast_causes", test, {**found, **drift})


SHARES = {0.0: U, 0.25: "mixed/0.25", 0.5: "mixed/0.5", 0.75: "mixed/0.75", 1.0: M}


def mixture(rows: Sequence[Row]) -> Claim:
    """More on-topic prompts in the baseline: the dose between both contrasts."""
    found = family(
        {
            f"share {share:g} less share 0, alone": gap(rows, refusal(arm, ALONE), refusal(U, ALONE))
            for share, arm in reversed(SHARES.items())
            if share
        }
    )
    slope = gap(rows, dose_slope, nothing)
    told = {
        "higher": "the more on-topic prompts, the worse",
        "lower": "the more on-topic prompts, the better",
        "alike": "it makes no difference",
    }
    text = (
        "Refusals one layer at a time, as the share of on-topic prompts in what is subtracted rises from 0 (unmatched) to 1 (matched): "
        f"{told.get(slope.verdict, 'no trend is shown')} (slope within an organism, over the whole range: {slope})."
    )
    found = {"slope over the whole range, alone": slope, **found}
    return Claim("How much of it must be matched?", text, "contrast_causes", "test_the_dose_of_matching_is_told_by_its_slope", found)


def dose_slope(row: Row) -> float:
    """Return the least-squares slope of an organism's refusals over the share of on-topic prompts."""
    refused = [refusal(arm, ALONE)(row) for arm in SHARES.values()]
    return float(np.polyfit(list(SHARES), np.array(refused, float), 1)[0])


CONTROLS = {"unmatched/random": U, "unmatched/random_classes": "unmatched/class_means"}


def controls(rows: Sequence[Row]) -> Claim:
    found = family(
        {f"{arm} less {of}, {way}": gap(rows, refusal(arm, way), refusal(of, way)) for way in WAYS for arm, of in CONTROLS.items()}
    )
    weak = [name for name, g in found.items() if g.verdict != "higher"]
    told = (
        "leave more refusals than what they are the control of" if not weak else f"are NOT told from what they control ({'; '.join(weak)})"
    )
    left = "; ".join(f"{arm} on {fails(rows, arm, EVERYWHERE)} everywhere and {fails(rows, arm, ALONE)} alone" for arm in CONTROLS)
    text = f"Random directions of the same number {told}. They fail: {left}."
    return Claim("Would any direction have done?", text, "contrast_causes", "test_controls_must_fail", found)


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


PROPOSED = {
    "topic_free": "unmatched, topic means projected out",
    "topic_ridge": "unmatched, topic means shrunk out",
    "blend": "both, weighed by split-half cosine",
    "precision": "matched class means, pooled by precision",
    "whitened": "matched, whitened",
}


CAVEATS = {
    "whitened": (
        f" It was tried at one fixed shrinkage, {SHRINKAGE:g}, while the SRA study chooses among "
        f"{', '.join(f'{s:g}' for s in SRAConfig().shrinkages)} on validation: what it does here says little of whitening."
    )
}
"""What a proposal's outcome does not say."""


def proposals(rows: Sequence[Row]) -> list[Claim]:
    """Return a claim for each proposed baseline: against both parents, refusals one layer at a time and KL at equal refusal."""
    rescaled = gap(rows, refusal(M, ALONE), refusal(f"{M}/raw_norm", ALONE))
    better = {"higher": "does worse than", "lower": "does better than", "alike": "does as", "no higher": "does no worse than"}
    text = (
        "The matched direction at the unmatched norm is what an edit at norm 1 makes of it. One layer at a time it "
        f"{better.get(rescaled.verdict, 'is not shown to do other than')} with its own norm ({rescaled})."
    )
    test = "test_a_proposal_wins_only_where_it_does"
    first = Claim(
        "The open question: unmatched magnitude, matched purity",
        text,
        "contrast_proposals",
        test,
        {"matched at unmatched norm less at its own, alone": rescaled},
    )
    return [first, *(_proposal(rows, name, label) for name, label in PROPOSED.items())]


def _proposal(rows: Sequence[Row], name: str, label: str) -> Claim:
    arm, found = f"proposed/{name}", dict[str, Gap]()
    for parent in (U, M):
        baseline = parent.split("/")[0]
        found[f"against {baseline}, alone"] = gap(rows, refusal(arm, ALONE), refusal(parent, ALONE))
        found[f"against {baseline}, everywhere"] = gap(rows, refusal(arm), refusal(parent))
        found[f"against {baseline}, KL at 5 % refusals"] = gap(rows, log_matched_kl(arm), log_matched_kl(parent), "log KL")
    found = family(found)
    sides = {b: {g.verdict for key, g in found.items() if key.startswith(f"against {b},")} for b in ("unmatched", "matched")}
    beaten = [b for b, verdicts in sides.items() if "lower" in verdicts and "higher" not in verdicts]
    worse = [b for b, verdicts in sides.items() if "higher" in verdicts]
    told = "beats both parents" if len(beaten) == 2 else f"beats {beaten[0]} only" if beaten else "beats neither parent"
    told += f", and is worse than {' and '.join(worse)}" if worse else ""
    reached = sum(row["arms"][arm][EVERYWHERE]["matched_kl"] is not None for row in rows)
    text = (
        f"`{name}` ({label}) {told}; everywhere it gets down to 5 % refusals on {reached} of {len(rows)} organisms.{CAVEATS.get(name, '')}"
    )
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
