import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from resect.commands.card import _measured
from resect.report import sentences
from resect.report.charts import drift_floor, flag_rows
from resect.report.charts_passes import spread
from resect.report.read import RunFolder, ordered, read_run
from resect.report.table import _short, summary_table
from resect.report.tables import cell
from resect.report.theme import PALETTE, diverging, variables
from resect.report.values import Measure, number, percent, read_measure, short, told


@pytest.fixture
def run(tmp_path: Path, example: ModuleType) -> RunFolder:
    return read_run(example.write_run(tmp_path))


def _with_ratio(run: RunFolder, arm: str, ratio: dict[str, float] | None, *, under: str = "sra") -> RunFolder:
    study = json.loads(json.dumps(run.study))
    study["matched"]["ratios"] = [entry for entry in study["matched"]["ratios"] if {entry["a"], entry["b"]} != {arm, under}]
    study["matched"]["ratios"].append({"a": arm, "b": under, "kl_ratio": ratio})
    if ratio is None:
        study["matched"]["arms"][arm] |= {"kl": None, "note": f"{arm} never gets there"}
    return RunFolder(run.evaluation, study, run.samples, run.config)


@pytest.mark.parametrize(
    ("ratio", "words", "tone"),
    [
        (
            {"value": 2.0, "low": 1.3, "high": 3.1},
            "2.0\xa0× less (95\xa0% interval 1.3 to 3.1) than the usual baseline (projected)",
            "good",
        ),
        ({"value": 1.1, "low": 0.8, "high": 1.5}, "cannot be told apart from the usual baseline (projected)", "mixed"),
        (
            {"value": 0.5, "low": 0.4, "high": 0.8},
            "2.0\xa0× more (95\xa0% interval 1.2 to 2.5) than the usual baseline (projected)",
            "mixed",
        ),
        (None, "cannot be compared with the usual baseline (projected) (projected never gets there)", "mixed"),
    ],
)
def test_the_verdict_follows_the_interval(run: RunFolder, ratio: dict[str, float] | None, words: str, tone: str) -> None:
    made = sentences.verdict(_with_ratio(run, "projected", ratio))
    assert words in made.sentence
    assert made.tone == tone


def test_losing_to_both_baselines_is_bad(run: RunFolder) -> None:
    worse = {"value": 0.5, "low": 0.4, "high": 0.8}
    assert sentences.verdict(_with_ratio(_with_ratio(run, "projected", worse), "standard", worse)).tone == "bad"


@pytest.mark.parametrize(("low", "high", "loud"), [(4.1, 9.8, False), (0.8, 1.3, True), (0.2, 0.6, True)])
def test_random_atoms_that_do_what_sra_does_are_loud_and_first(run: RunFolder, low: float, high: float, loud: bool) -> None:
    made = sentences.verdict(_with_ratio(run, "random_atoms", {"value": (low + high) / 2, "low": low, "high": high}))
    assert any(warning.loud for warning in made.warnings) is loud
    assert made.warnings[0].loud is loud
    assert made.warnings[0].text.startswith("RANDOM ATOMS DO WHAT SRA DOES") is loud
    assert (made.tone == "bad") is loud


def test_a_control_without_a_value_is_said_quietly(run: RunFolder) -> None:
    made = sentences.verdict(_with_ratio(run, "random_atoms", None))
    assert any("random_atoms cannot be compared (random_atoms never gets there)" in warning.text for warning in made.warnings)
    assert not any(warning.loud for warning in made.warnings)


def test_without_a_bound_a_ratio_decides_nothing() -> None:
    assert [sentences.compare(Measure(value, None, None, None)) for value in (9.0, 1.0, 0.1)] == [0, 0, 0]
    assert sentences.compare(Measure(3.0, 1.5, None, None)) == 1
    assert sentences.compare(Measure(0.3, None, 0.8, None)) == -1
    assert sentences.compare(None) == 0


def test_covert_refusal_is_named(run: RunFolder) -> None:
    evaluation = json.loads(json.dumps(run.evaluation))
    evaluation["arms"]["sra"]["recovery"]["value"] = 0.3
    assert any(
        "Not refusing is not answering" in w.text for w in sentences.warnings(RunFolder(evaluation, run.study, run.samples, run.config))
    )
    assert not any("Not refusing is not answering" in w.text for w in sentences.warnings(run))


def test_the_forecast_is_held_against_the_measurement(run: RunFolder) -> None:
    gained = _with_ratio(run, "standard", {"value": 3.0, "low": 2.0, "high": 4.0}, under="sra")
    assert "it came true" in sentences.forecast(gained)
    same = _with_ratio(run, "standard", {"value": 1.0, "low": 0.8, "high": 1.2}, under="sra")
    assert "it did not come true" in sentences.forecast(same)


def test_arms_have_one_order_with_unknown_ones_before_the_controls() -> None:
    assert ordered(["random_atoms", "zz", "sra", "aa", "base"]) == ["base", "sra", "aa", "zz", "random_atoms"]


def test_numbers_are_written_for_people() -> None:
    assert [number(x) for x in (0.0, 0.5, 12.345, 0.00123, 84000.0)] == ["0", "0.500", "12.3", "0.00123", "84,000"]
    assert number(8.4e-5) == "8.4 × 10⁻⁵"
    assert number(-0.25) == "−0.250"
    assert number(None) == "not measured"
    assert [percent(x) for x in (0.0, 0.02, 0.0004, -0.0001, 1.0)] == ["0\xa0%", "2\xa0%", "0\xa0%", "0\xa0%", "100\xa0%"]
    assert [short(x) for x in (0.001, 10.0, 0.0, 100.0)] == ["0.001", "10", "0", "100"]
    assert read_measure({"value": float("nan"), "n": 3}) is None
    assert read_measure({"value": True}) is None


def test_the_log_axis_never_starts_at_zero() -> None:
    assert drift_floor([0.0, 0.03, 0.5]) == pytest.approx(0.01)
    assert drift_floor([1e-30, 0.5]) == pytest.approx(1e-6)
    assert drift_floor([0.0]) is None


def test_no_flag_covers_a_flag_or_a_pole() -> None:
    starts, widths = [0.0, 10.0, 12.0, 100.0, 12.0], [50.0, 5.0, 200.0, 10.0, 60.0]
    rows = flag_rows(starts, widths)
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            if i != j and starts[i] <= starts[j] < starts[i] + widths[i]:
                assert other < row or (starts[i] == starts[j] and other != row)


def test_labels_move_apart_and_no_further() -> None:
    placed = spread([0.0, 0.1, 5.0], gap=1.0)
    assert placed == pytest.approx([-0.45, 0.55, 5.0])
    assert spread([3.0, 1.0], gap=0.5) == [3.0, 1.0]


def _contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_marks_stand_out_in_both_themes() -> None:
    for theme in (0, 1):
        card, page = PALETTE["card"][theme], PALETTE["page"][theme]
        for name in ("ink", "muted", "link", "good"):
            assert min(_contrast(PALETTE[name][theme], ground) for ground in (card, page)) >= 4.5, name
        for name in (key for key in PALETTE if key.startswith(("arm-", "role-", "spare-"))):
            assert _contrast(PALETTE[name][theme], card) >= 3, name


def test_every_light_colour_is_one_variable() -> None:
    light = list(variables("light").values())
    assert len(light) == len(set(light))
    assert len(diverging("light")) == len(diverging("dark")) == 17


def _print(evaluation: Any, study: Any, *, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(evaluation, study))
    return console.export_text()


def test_the_terminal_table_shows_every_arm_and_says_what_is_not_there(run: RunFolder) -> None:
    text = _print(run.evaluation, run.study)
    assert [arm for arm in run.arms if arm in text] == run.arms
    assert "KL at 2\xa0% refused" in text
    assert "recovery" in text
    bare = {"model": "[red]m", "arms": {"sra": {"refusal_rate": {"value": 0.5}}, "base": {}}}
    without = _print(bare, {})
    assert "[red]m" in without
    assert "recovery" not in without
    assert "50%" in without
    assert "–" in without


def test_eighty_columns_cut_no_number(run: RunFolder) -> None:
    text = _print(run.evaluation, run.study, width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for arm in run.arms:
        refusal, drift = run.measure(arm, "refusal_rate"), run.measure(arm, "kl_first_token")
        assert refusal
        assert drift
        assert f"{refusal.value:.0%}" in text
        assert f"{drift.value:.2g}" in text


def test_a_drift_that_rounding_alone_makes_is_written_as_no_more_than_that():
    raw = {"value": 2e-4, "low": 1e-4, "high": 3e-4, "n": 40, "unit": "nats"}
    below, above, unknown = raw | {"floor": 2e-4}, raw | {"floor": 1e-5}, raw
    assert [read_measure(m).unresolved for m in (below, above, unknown)] == [True, False, False]
    unresolved = read_measure(below)
    assert told(unresolved, measure="kl_first_token") == "≤ 2.0 × 10⁻⁴"
    assert told(read_measure(above), measure="kl_first_token") == told(read_measure(unknown), measure="kl_first_token") == "2.0 × 10⁻⁴"
    shown = cell(unresolved, measure="kl_first_token", name="sra")
    assert (shown.value, shown.small) == ("≤ 2.0 × 10⁻⁴", "rounding alone makes as much · n 40")
    assert shown.hover == "sra: ≤ 2.0 × 10⁻⁴ (rounding alone makes as much; n 40)"
    assert _short(unresolved, measure="kl_first_token") == "≤ 2e-04"
    assert _measured(below) == "≤ 0.0002 (rounding alone makes as much), n = 40"
    assert _measured(above) == _measured(unknown) == "0.0002 (0.0001 to 0.0003), n = 40"
