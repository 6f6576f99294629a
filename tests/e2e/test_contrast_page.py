"""The sentences of docs/contrast.md follow from the rows: planted truths come out, and their opposites come out too."""

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contrast_page
import numpy as np
import pytest
import torch
from contrast_claims import ALONE, EVERYWHERE, TESTS, Gap, M, U, by_seed, claims, family, gap, interval, refusal, sign_flip
from contrast_proposals import PROPOSALS, matched, rescaled, split_half, unmatched
from scipy import stats

from resect.directions import Directions, baselines
from resect.directions.som import orthogonalised
from resect.edit.algebra import orthonormal_basis
from resect.organism.quality import BARS
from resect.prompts import Prompt
from resect.studies.contrast_arms import norm_scales
from resect.studies.contrast_materials import ContrastMaterials

LAYERS = 6
ARMS = (*contrast_page.TABLED, f"{U}/n48", f"{M}/n48", "matched/class_means/projected", "unmatched/class_means/projected")
Row = dict[str, Any]


def measured(refused: float, kl: float) -> Row:
    cells = [{"layer": layer, "refusal": refused, "benign": 0.0, "kl": kl} for layer in range(LAYERS)]
    test = {"refusal": refused, "benign": 0.0, "kl": kl}
    return {"cells": cells, "layer": 3, "test": test, "matched_kl": kl, "recovery": 1.0 - refused, "spoken_refusal": refused}


def planted(change: Callable[[Row], None] = lambda _row: None) -> list[Row]:
    """Return eighteen organisms on which all arms are alike but for noise, changed."""
    random = np.random.default_rng(0)
    rows = []
    for seed, topic, architecture in itertools.product((3, 4, 5), (0.0, 0.5, 1.0), ("qwen3", "qwen3_5")):
        arms = {
            arm: {way: measured(0.3 + 0.02 * random.random(), 0.01 + 0.001 * random.random()) for way in (EVERYWHERE, ALONE)}
            for arm in ARMS
        }
        flat = {
            name: [0.9 + 0.001 * random.random()] * LAYERS
            for name in ("cosine", *(f"{k}_{b}" for k in ("norm", "split_half", "purity") for b in ("matched", "unmatched")))
        }
        row = {
            "name": f"{architecture}-t{topic:g}-s{seed}",
            "seed": seed,
            "topic": topic,
            "architecture": architecture,
            "arms": arms,
            "geometry": {**flat, "added_norm": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]},
            "quality": {name: (low + high) / 2 for name, (low, high) in BARS.items()},
            "foreign_refusal": 0.9 - 0.8 * topic,
            "n": {"extract": 162, "harmful_validation": 24, "harmless_validation": 24, "harmful_test": 72, "harmless_test": 72},
        }
        change(row)
        rows.append(row)
    return rows


def setting(arm: str, refused: float, way: str = ALONE) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        row["arms"][arm][way]["test"]["refusal"] += refused - 0.3
        for cell in row["arms"][arm][way]["cells"]:
            cell["refusal"] += refused - 0.3

    return change


def both(*changes: Callable[[Row], None]) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        for each in changes:
            each(row)

    return change


def told(question: str, change: Callable[[Row], None] = lambda _row: None) -> str:
    """Return the sentence that answers a question about planted organisms."""
    (text,) = [claim.text for claim in claims(planted(change)) if claim.question.startswith(question)]
    return text


def test_failure_is_told_from_success() -> None:
    question = "Does matched contrast fail"
    assert told(question).count("leaves as many refusals as") == 2
    worse = told(question, setting(M, 0.9))
    assert "taken out of one layer, the matched direction leaves more refusals than" in worse.replace("T", "t")
    assert "fails on 18 of 18 organisms, the unmatched one on 0 of 18" in worse
    assert "leaves fewer refusals than" in told(question, setting(U, 0.9))
    assert "its KL is larger" in told(question, lambda row: row["arms"][M][EVERYWHERE].update(matched_kl=1.0))
    assert "its KL is smaller" in told(question, lambda row: row["arms"][U][EVERYWHERE].update(matched_kl=1.0))
    assert "gives back 0% of the helpful twin's answers" in told(question, lambda row: row["arms"][M][EVERYWHERE].update(recovery=0.0))


def test_whole_responses_seeds_and_the_floor_are_told_beside_the_main_gap() -> None:
    question = "Does matched contrast fail"
    louder = both(*(lambda row, a=arm, v=v: row["arms"][a][ALONE].update(spoken_refusal=v) for arm, v in ((M, 0.75), (U, 0.25))))
    text = told(question, louder)
    assert "one layer at a time, the matched direction leaves 75% and the unmatched one 25% (by the first token 31% and 31%)" in text
    assert "neither plain arm leaves" not in text
    gone = both(*(lambda row, a=arm: row["arms"][a][EVERYWHERE]["test"].update(refusal=0.0) for arm in (M, U)))
    assert "neither plain arm leaves more than 2% of the refusals" in told(question, gone)
    rows = planted(lambda row: row["arms"][M][ALONE]["test"].update(refusal={3: 0.35, 4: 0.5, 5: 1.0}[row["seed"]]))
    seeds = by_seed(rows, refusal(M, ALONE), lambda _row: 0.3)
    expected = stats.ttest_1samp([0.05, 0.2, 0.7], 0).confidence_interval()
    assert (seeds.value, seeds.low, seeds.high, seeds.n) == pytest.approx((0.95 / 3, expected.low, expected.high, 3))
    assert seeds.p == pytest.approx(2 / 8)
    claim = next(c for c in claims(rows) if c.question.startswith(question))
    assert claim.gaps["the same, each seed one unit, alone"].n == 3
    assert claim.gaps["by whole responses, alone"].n == 18


def test_the_papers_finding_can_come_out_either_way() -> None:
    question, arm = "And in the second paper's", "matched/som/raw_norm"
    assert "is not there (matched less unmatched, norms as they come" in told(question)
    assert "is reproduced (matched less unmatched, norms as they come" in told(question, setting(arm, 0.9))
    assert "is reversed (matched less unmatched, norms as they come" in told(question, setting(arm, 0.0))


def test_layers_are_sorted_by_who_fails() -> None:
    def at(arm: str, layer: int) -> Callable[[Row], None]:
        return lambda row: row["arms"][arm][EVERYWHERE]["cells"][layer].update(refusal=0.9)

    text = told("Where", both(at(M, 1), at(M, 2), at(U, 2), at(U, 4)))
    assert "matched fails and unmatched does not at layers 1" in text
    assert "unmatched fails and matched does not at layers 4" in text
    assert "both fail at layers 2" in text
    assert "neither fails at layers 0, 3, 5" in text
    assert "at layers 0, 1, 2, 3, 4, 5" in told("Where")
    half = told(
        "Where", lambda row: row["geometry"].update(norm_matched=[0.5] * LAYERS, norm_unmatched=[1.0] * LAYERS, cosine=[0.25] * LAYERS)
    )
    assert f"(median) {', '.join(['0.5'] * LAYERS)} at layers 0 to 5, their cosine {', '.join(['0.25'] * LAYERS)}; safety tuning" in half
    assert "changed nothing before layer 2" in half


def test_norm_is_blamed_only_where_it_costs() -> None:
    assert "small norm is no cause:" in told("(a)")
    assert "is a cause:" in told("(a)", setting(f"{M}/raw_norm", 0.9))
    assert "is no cause, it helps" in told("(a)", setting(f"{M}/raw_norm", 0.0))


def test_noise_is_blamed_only_where_few_prompts_cost_more() -> None:
    question, alone = "(b) Is it signal", "aken out of one layer, noise"
    assert f"{alone} is no cause (" in told(question)
    assert f"{alone} is a cause (" in told(question, setting(f"{M}/n12", 0.9))
    assert f"{alone} is no cause: unmatched suffers more" in told(question, setting(f"{U}/n12", 0.9))
    assert "Taken out everywhere, noise is a cause" in told(question, setting(f"{M}/n12", 0.9, EVERYWHERE))
    # Losing as much on both sides blames neither.
    assert f"{alone} is no cause (" in told(question, both(setting(f"{M}/n12", 0.9), setting(f"{U}/n12", 0.9)))


def test_purity_is_read_from_what_tuning_added() -> None:
    def purity(baseline: str) -> Callable[[Row], None]:
        return lambda row: row["geometry"].update({f"purity_{baseline}": [0.99] * LAYERS})

    assert "is the purer one" in told("(b) Is it signal", purity("matched"))
    assert "is the less pure one" in told("(b) Is it signal", purity("unmatched"))


def test_sample_sizes_are_judged_by_dealing() -> None:
    question, arm = "(b) Or", "dealt/class_means"
    assert told(question).count("dealing changes no refusals") == 2
    assert "Taken out of one layer, dealing costs refusals" in told(question, setting(arm, 0.9))
    assert "Taken out everywhere, dealing gains" in told(question, setting(arm, 0.0, EVERYWHERE))
    assert "everywhere, is larger" in told(question, lambda row: row["arms"][arm][EVERYWHERE]["test"].update(kl=1.0))


def test_position_compares_both_baselines() -> None:
    assert told("(c)").count("both suffer alike") == 4
    assert told("(c)").count("`last_user` instead of the last token") == 2
    assert "matched suffers more" in told("(c)", setting(f"{M}/last_user", 0.9, EVERYWHERE))
    assert "unmatched suffers more" in told("(c)", setting(f"{U}/mean", 0.9, EVERYWHERE))


def test_number_of_directions_is_read_for_both_baselines() -> None:
    assert told("(d)").count("the same refusals") == 2
    assert "matched class means less one mean, alone: more refusals" in told("(d)", setting("matched/class_means", 0.9))
    assert "unmatched class means less one mean, alone: fewer refusals" in told("(d)", setting("unmatched/class_means", 0.0))
    assert told("(d)").count(", the same (") == 4
    assert "matched KL, som, larger" in told("(d)", lambda row: row["arms"]["matched/som"][EVERYWHERE]["test"].update(kl=1.0))


def test_topic_trend_is_told_by_its_interval() -> None:
    def trend(sign: float) -> Callable[[Row], None]:
        return lambda row: row["arms"][M][ALONE]["test"].update(refusal=0.5 + sign * 0.4 * row["topic"])

    assert told("(e)").count("no trend is shown") == 2
    assert "the stronger the topic, the worse matched does" in told("(e)", trend(1))
    assert "the stronger the topic, the better matched does" in told("(e)", trend(-1))
    assert "refused to 90%, 50%, 10% at topic strength 0, 0.5, 1" in told("(e)")


def test_the_harmless_mean_is_blamed_only_where_its_loss_helps() -> None:
    assert "lowers no arm's refusals" in told("(f)")
    assert "lowers no arm's refusals" in told("(f)", setting(f"{U}/projected", 0.9))
    assert f"helps ({U} projected less plain, alone" in told("(f)", setting(f"{U}/projected", 0.0))
    assert f"costs ({U} projected less plain, alone" in told("(f)", setting(f"{U}/projected", 0.9))


def test_the_dose_of_matching_is_told_by_its_slope() -> None:
    question, shares = "How much", {"mixed/0.25": 0.4, "mixed/0.5": 0.5, "mixed/0.75": 0.6, M: 0.7}
    worse = both(*(setting(arm, value) for arm, value in shares.items()))
    assert "the more on-topic prompts, the worse (" in told(question, worse)
    assert "+40 points" in told(question, worse)
    falling = both(*(setting(arm, 0.8 - value) for arm, value in shares.items()), setting(U, 0.5))
    assert "the more on-topic prompts, the better (" in told(question, falling)
    assert "it makes no difference (" in told(question)


def test_controls_must_fail() -> None:
    arms = ("unmatched/random", "unmatched/random_classes")
    assert "are NOT told from what they control" in told("Would any")
    failing = both(*(setting(arm, 0.9, way) for arm in arms for way in (EVERYWHERE, ALONE)))
    assert "leave more refusals than what they are the control of" in told("Would any", failing)
    assert "unmatched/random on 18 of 18 everywhere" in told("Would any", failing)


def test_a_proposal_wins_only_where_it_does() -> None:
    question, arm = "Proposal: topic_free", "proposed/topic_free"
    assert "beats neither parent" in told(question)
    assert "beats both parents" in told(question, setting(arm, 0.0))
    assert "beats unmatched only" in told(question, both(setting(arm, 0.0), setting(M, 0.0)))
    assert "beats neither parent, and is worse than unmatched and matched" in told(question, setting(arm, 0.9))
    assert "says little of whitening" in told("Proposal: whitened")
    assert "one fixed shrinkage, 0.1, while the SRA study chooses among 1, 3, 10" in told("Proposal: whitened")
    assert "on 0 of 18 organisms" in told(question, lambda row: row["arms"][arm][EVERYWHERE].update(matched_kl=None))
    assert "does better than with its own norm" in told("The open question", setting(f"{M}/raw_norm", 0.9))
    assert "does worse than with its own norm" in told("The open question", setting(f"{M}/raw_norm", 0.0))


def test_intervals_are_students_and_the_sign_test_is_exact() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    mean, low, high = interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert interval([0.1, 0.2])[1:] == (None, None)
    assert sign_flip([1, 2, 3]) == 2 / 8
    reference = stats.permutation_test((np.array(values), np.zeros(4)), lambda a, b: np.sum(a - b), permutation_type="samples")
    assert sign_flip(values) == pytest.approx(reference.pvalue)
    assert sign_flip([0, 0, 0]) == 1


def test_few_organisms_are_open_and_missing_values_leave_the_pair_out() -> None:
    rows = planted(setting(M, 0.9))
    assert gap(rows[:2], refusal(M, ALONE), refusal(U, ALONE)).verdict == "open"
    assert gap(rows, refusal(M, ALONE), refusal(U, ALONE)).verdict == "higher"
    assert gap(rows, refusal(M, ALONE), lambda row: None if row["seed"] == 3 else 0.0).n == 12
    assert Gap(0.1, -0.3, 0.5, 0.5, 9).verdict == "open"
    assert Gap(0.3, 0.2, 0.4, 0.04, 9).verdict == "higher"
    assert Gap(0.3, 0.2, 0.4, 0.06, 9).verdict == "no lower"  # both tests are asked for
    assert Gap(-0.3, -0.4, 0.09, 0.2, 9).verdict == "no higher"
    two = family({"a": Gap(0.3, 0.2, 0.4, 0.03, 9), "b": Gap(0.3, 0.2, 0.4, 0.9, 9)})
    assert [g.p for g in two.values()] == pytest.approx([0.06, 0.9])
    assert two["a"].verdict == "no lower"  # sure alone, not among two
    assert Gap(-0.02, -0.04, -0.01, 0.01, 9).verdict == "alike"  # sure and too small to matter
    assert gap(rows, lambda _row: None, refusal(M)).n == 0


def test_every_claim_names_a_test_here_and_a_figure_that_is_drawn() -> None:
    rows = planted()
    here = Path(__file__).read_text(encoding="utf-8")
    drawn = {f"contrast_{name}" for name in contrast_page.figures(rows, claims(rows))}
    assert Path(__file__).as_posix().endswith(TESTS)
    for claim in claims(rows):
        assert f"def {claim.test}(" in here
        assert claim.figure in drawn
        assert claim.gaps


def test_the_page_says_what_is_missing_and_bolds_who_fails(tmp_path: Path) -> None:
    rows = planted(setting(M, 0.9))
    summary = contrast_page.publish(rows, planned=18, seeds=3, docs=tmp_path)
    text = (tmp_path / "contrast.md").read_text(encoding="utf-8")
    assert "missing" not in text
    assert "all 18 organisms meet every one" in text
    line = next(line for line in text.split("Taken out of one layer:\n")[1].splitlines() if line.startswith(f"| `{M}` |"))
    assert line.count("**") == 2 * 7
    assert set(summary) == {claim.question for claim in claims(rows)}
    json.dumps(summary, allow_nan=False)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{claim.figure}.svg" for claim in claims(rows)}
    rows[0]["quality"]["matched_refusal"] = 0.5
    for row in rows:
        row["arms"]["proposed/whitened"][EVERYWHERE]["matched_kl"] = None
    json.dumps(contrast_page.publish(rows[:7], planned=18, seeds=3, docs=tmp_path), allow_nan=False)
    short = (tmp_path / "contrast.md").read_text(encoding="utf-8")
    assert "11 of the 18 planned organisms are missing" in short
    assert "complete are: 3." in short
    assert f"{rows[0]['name']} misses matched_refusal." in short


def test_rows_are_only_read() -> None:
    rows = planted()
    before = copy.deepcopy(rows)
    claims(rows)
    assert rows == before


def materials(refusal_part: torch.Tensor, topic_part: torch.Tensor, *, noise: float) -> ContrastMaterials:
    """Return one layer of planted rows: harmful = topic + refusal, matched = topic, unmatched = neither, and noise."""
    generator = torch.Generator().manual_seed(0)
    categories = ["a", "b"] * 30
    topics = torch.stack([topic_part * (1 if c == "a" else 2) for c in categories])
    drawn = [noise * torch.randn(60, len(refusal_part), generator=generator) for _ in range(3)]
    harmful, on_topic, off_topic = topics + refusal_part + drawn[0], topics + drawn[1], drawn[2]
    prompts = tuple(Prompt(f"{c} {i}", category=c, pair_id=str(i)) for i, c in enumerate(categories))
    zero = torch.zeros(60, 60)
    keys, ids = categories, [p.pair_id for p in prompts]
    weights = {
        "unmatched": torch.cat([zero, baselines.unmatched(60, 60)], dim=1),
        "matched": torch.cat([baselines.matched(keys, keys), zero], dim=1),
        "paired": torch.cat([baselines.matched(ids, ids), zero], dim=1),
    }
    benign = torch.cat([on_topic, off_topic])[:, None]
    return ContrastMaterials(harmful[:, None], benign, prompts, prompts * 2, 60, weights, harmful[:1, None])


def cosine(found: Directions, truth: torch.Tensor) -> float:
    return float(torch.cosine_similarity(found.vectors[0, 0], truth, dim=0))


@pytest.mark.parametrize("name", sorted(PROPOSALS))
def test_proposals_find_the_planted_refusal_where_unmatched_finds_the_topic(name: str) -> None:
    refusal_part, topic_part = torch.zeros(16), torch.zeros(16)
    refusal_part[0], topic_part[1] = 1.0, 5.0
    planted_rows = materials(refusal_part, topic_part, noise=0.05)
    raw = Directions(unmatched(planted_rows)[:, None], "unmatched")
    assert cosine(raw, refusal_part) < 0.2
    found = cosine(PROPOSALS[name](planted_rows), refusal_part)
    assert found > (0.7 if name == "blend" else 0.95)


def test_the_matched_direction_at_the_unmatched_norm_is_an_edit_of_full_strength() -> None:
    planted_rows = materials(torch.eye(16)[0], 5 * torch.eye(16)[1], noise=0.05)
    reference = unmatched(planted_rows).norm(dim=-1)
    assert torch.allclose(norm_scales(rescaled(planted_rows), reference), torch.ones(1, 1))
    own = norm_scales(Directions(matched(planted_rows)[:, None], "matched"), reference)
    assert float(own) < 0.05


def test_split_halves_agree_where_there_is_signal_and_not_where_there_is_none() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(200, 1, 32, generator=generator) for _ in range(2)]
    assert abs(float(split_half(*noise))) < 0.3
    assert float(split_half(noise[0] + 5 * torch.eye(32)[0], noise[1])) > 0.95
    assert math.isclose(float(split_half(torch.ones(4, 1, 2), torch.zeros(4, 1, 2))), 1.0, rel_tol=1e-6)


def test_maps_made_orthogonal_are_the_same_edit_where_all_are_removed_jointly_at_norm_one() -> None:
    """Why the page calls the second paper's configuration c no other edit: the span is all that such an edit knows."""
    found = Directions(torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2)), "som")
    bases = [orthonormal_basis(d.vectors[0].double()) for d in (found, orthogonalised(found, "som_svd"))]
    assert torch.allclose(*(basis @ basis.T for basis in bases), atol=1e-5)
