"""The page of the contrast study: what the data say is on it, escaped and offline, and its sentences follow the tests."""

import re
from html.parser import HTMLParser

import pytest

from resect import artifacts
from resect.errors import UserError
from resect.report import svg
from resect.report.build import build_contrast_report
from resect.report.contrast import headline, render_contrast
from resect.report.contrast_errors import every_layer, summary
from resect.report.contrast_notes import notes
from resect.report.contrast_read import ContrastRun, read_contrast
from resect.report.contrast_table import contrast_table
from resect.report.contrast_tables import from_paper, heat_maps
from resect.report.theme import BINS

ARMS = {
    "unmatched/som": ("unmatched", "som", False),
    "matched/som": ("matched", "som", False),
    "matched/som_svd": ("matched", "som_svd", False),
    "matched/som/raw_norm": ("matched", "som", True),
}
HOSTILE = "<script>alert(1)</script>"


def m(value, n=120, unit="fraction"):
    return {"value": value, "low": max(0.0, value - 0.05), "high": value + 0.05, "n": n, "unit": unit}


def cell(layer, weight, r, *, kind="single", read=True):
    layers = [layer] if kind == "single" else [0, 1, 2]
    found = {"layers": layers, "kind": kind, "weight": weight, "refusal": r / 10, "benign": 0.0, "kl": 0.004 * weight, "kl_first": 0.01}
    return found | {"r": r, "read": read, "efficiency": (10 - r) / (0.004 * weight)}


def grid(arm):
    table = {"unmatched/som": {0: (10, 0), 1: (0, 0), 2: (10, 10)}}.get(arm, {0: (10, 10), 1: (10, 9), 2: (10, 10)})
    single = [cell(layer, w, r) for layer, rs in table.items() for w, r in zip((0.5, 1.0), rs, strict=True)]
    return [*single, cell(0, 1.0, 0, kind="all"), cell(0, 0.5, 10, kind="all", read=False)]


def verdict(question, place, *, more=0, less=0, n=3):
    words = {"title": f"About {question}", "answer": f"{more} of {n}", "sentences": ["a < b"], "order": 0}
    return {"question": question, "place": place, "n": n, "more": more, "less": less, "drift_more": 0, "drift_less": 0, **words}


def errors(cone, *, held_out=True):
    """Error bars that are least at layer 1; nothing is told from chance at layer 2."""
    interval = {"value": [0.5, 0.9, 0.1], "low": [0.4, 0.8, -0.2], "high": [0.6, 0.95, 0.4]}
    bars = {name: interval for name in ("signal", "angle", "split_half")} | {"held_out": interval if held_out else None}
    p = {"p_value": [0.001, 0.0005, 0.4], "p_holm": [0.002, 0.0015, 0.4]}
    return bars | p | {"cone": [2 * cone, cone, 4 * cone], "signal_to_noise": [2.0, 9.0, None], "prompts_needed": [400, 1200, None]}


def document(**changes):
    evaluation = {"refusal_rate": m(0.5), "benign_refusal_rate": m(0.01), "kl_first_token": m(0.02, unit="nats")}
    evaluation |= {"kl_tokens": m(0.01), "kl_tokens_top100": m(0.01), "recovery": None, "verdicts": {"refuse": 60}}
    chosen = cell(1, 1.0, 0) | {"feasible": True}
    capture = {name: [0.2, 0.9, 0.4] for name in ("best", "best_squared", "span", "span_squared")}
    by_layer = {"unmatched": [1.0, 2.0, 3.0], "matched": [0.1, 0.2, 0.3]}
    protocol = [{"arm": arm, "functional": True, "successful": arm == "unmatched/som", "functional_anywhere": True} for arm in ARMS]
    for entry in protocol:
        entry |= {"successful_anywhere": True, "least": 0, "base": 10, "panel": 10, "layers_at_zero": [1]}
    made = {
        "format": "resect.contrast/1",
        "study": "contrast",
        "model": {"name": HOSTILE, "fingerprint": "f", "architecture": "Q", "layers": 3, "d_model": 8},
        "prompts": {
            "used": {"harmful": 60, "matched": 60, "unmatched": 60, "held_out_pairs": 20},
            "categories": {"a": 30, "b": 30},
            "similarity": {"within": 0.6, "shuffled": 0.2, "n": 60},
            "paired": True,
        },
        "arms": {
            arm: {
                "baseline": b, "method": method, "variant": "plain", "label": arm, "control": control, "order": i, "count": 6,
                "chosen": {"any": chosen, "single": chosen},
            }
            for i, (arm, (b, method, control)) in enumerate(ARMS.items())
        },
        "evaluation": {arm: {"any": evaluation, "single": evaluation} for arm in (*ARMS, "base")},
        "grids": {arm: grid(arm) for arm in ARMS},
        "protocol": {"panel": 10, "base": 10, "arms": protocol, "audit": {"spared": 4, "read": 4, "right": 4}},
        "geometry": {
            "norms": by_layer, "cosines": {"matched": [0.1, 0.5, 0.9]}, "topic_part": by_layer, "rows": dict.fromkeys(by_layer, 60),
            "angle": 10.0, "errors": {"unmatched": errors(5.0), "matched": errors(50.0, held_out=False)}, "no_errors": {},
        },
        "capture": {arm: capture for arm in ARMS},
        "matched": {
            "refusal": 0.05,
            "arms": {
                "unmatched/som": {"kl": 0.1, "strength": 1.0, "note": None},
                "matched/som": {"kl": None, "strength": None, "note": "never"},
            },
            "ratios": [{"a": "unmatched/som", "b": "matched/som", "kl_ratio": {"value": 0.5, "low": 0.4, "high": 0.8}}],
        },
        "doses": [
            {"baseline": "mixed", "share": share, "n": 60, "chosen": chosen, "test": evaluation} for share in (0.0, 1.0)
        ] + [{"baseline": b, "share": None, "n": 16, "chosen": chosen, "test": evaluation} for b in ("unmatched", "matched")],
        "comparisons": [
            {"a": "unmatched/som", "b": "matched/som", "place": "any", "measure": "refusal_rate", "test": "mcnemar", "n": 120,
             "difference": {"value": -0.5, "low": -0.6, "high": -0.4}, "p": 1e-5, "p_holm": 3e-5}
        ],
        "verdicts": [verdict("matched", "single", more=3), verdict("matched", "any")],
    }  # fmt: skip
    return made | changes


def run(**changes):
    return ContrastRun(document(**changes), f"model = '{HOSTILE}'\n")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")]


def test_every_chart_is_valid(monkeypatch):
    configure, valid = svg.configure, []

    def checked(chart):
        valid.append(configure(chart).to_dict())  # altair checks it here, and `render` does not
        return configure(chart)

    monkeypatch.setattr(svg, "configure", checked)
    render_contrast(run())
    assert len(valid) == 10


def test_the_page_is_whole_offline_and_escaped():
    page = render_contrast(run())
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.found
    assert tags.links == []
    assert "url(http" not in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert tags.found.count("svg") == 10
    assert page == render_contrast(run())
    for section in ("answers", "paper", "heat", "geometry", "matched", "doses", "numbers", "made"):
        assert f'<section id="{section}">' in page


def test_the_papers_tables_are_made_anew_and_its_own_figures_stand_beside():
    first, second, third, fourth = from_paper(run())
    assert [[c.value for c in row] for row in first.ours.rows] == [["0", "1", "0.00400", "2,500"], ["1", "0.5", "0.00200", "5,000"]]
    assert [c.value for c in first.theirs.rows[0]] == ["9", "0.5", "0.00480", "2,305"]
    assert [[c.value for c in row] for row in second.ours.rows] == [["1", "10", "9"], ["0", "10", "10"], ["2", "10", "10"]]
    assert [c.value for c in second.theirs.rows[0]] == ["9", "10", "10", "9", "9", "9"]
    assert "matched/som_svd" in third.title
    assert fourth.ours.rows[0][-1].value == "0.900 (layer 1)"


def test_a_method_that_was_not_run_is_said_and_not_made_up():
    arms = {arm: entry for arm, entry in document()["arms"].items() if "svd" not in arm}
    third = from_paper(run(arms=arms))[2]
    assert third.ours is None
    assert "The arms of this table were not run." in render_contrast(run(arms=arms))


def test_heat_maps_are_darker_where_more_is_refused():
    (unmatched, *_) = heat_maps(run(), controls=False)
    rows = dict(unmatched.rows)
    assert list(rows) == ["0", "1", "2", "all"]
    assert [c.text for c in rows["0"]] == ["10", "0"]
    assert [c.colour for c in rows["0"]] == [BINS - 1, BINS // 2]
    assert "not read" in rows["all"][0].hover
    assert [m.arm for m in heat_maps(run(), controls=True)] == ["matched/som/raw_norm"]


@pytest.mark.parametrize(
    ("single", "anywhere", "words", "tone"),
    [
        (
            {"more": 3},
            {},
            "editing one layer, it removes fewer refusals in 3 of 3 methods; editing where it is best, not told apart",
            "bad",
        ),
        (
            {"less": 2},
            {"less": 1},
            "editing one layer, it removes more in 2 of 3 methods; editing where it is best, it removes more in 1",
            "good",
        ),
        ({"more": 1, "less": 1}, {}, "it removes fewer refusals in 1 and more in 1 of 3 methods", "mixed"),
        ({"n": 0}, {"n": 0}, "one layer, both are one edit; editing where it is best, both are one edit (", "mixed"),
        ({}, {}, "one layer, not told apart in any of 3 methods; editing where it is best, not told apart in any of 3", "mixed"),
    ],
)
def test_the_headline_follows_the_tests(single, anywhere, words, tone):
    found = headline(run(verdicts=[verdict("matched", "single", **single), verdict("matched", "any", **anywhere)]))
    assert words in found[0]
    assert found[1] == tone


def test_without_the_question_there_is_no_answer():
    assert headline(run(verdicts=[]))[0].startswith("Matched and unmatched contrast were not both run")


def test_every_reason_to_doubt_is_told_and_none_without_one():
    assert notes(run()) == []
    doubtful = document()
    doubtful["prompts"] |= {"similarity": {"within": 0.1, "shuffled": 0.2, "n": 9}, "paired": False}
    doubtful["protocol"] |= {"base": 8, "audit": {"spared": 9, "read": 4, "right": 3}}
    doubtful["arms"]["matched/som"]["chosen"] = {"any": cell(0, 1.0, 9) | {"feasible": False}}
    doubtful["evaluation"]["base"] = {"any": {"refusal_rate": m(0.9, n=29)}}
    found = notes(ContrastRun(doubtful, ""))
    wanted = (
        "hardly matched",
        "1 had another R",
        "refuses only 8 of the 10",
        "No cell worked on validation for matched/som",
        "Only 29",
        "carries a pair id",
    )
    for words in wanted:
        assert any(words in note for note in found), words
    assert len(found) == 6


def test_everything_that_was_left_out_or_guessed_is_told():
    short = document()
    left = {"rows": {"matched": 4}, "harmful": 3, "matched": 2, "categories": ["c", "d"]}
    guesses = {"layer": 2, "layers": 6, "accuracy": 0.75, "chance": 0.25, "labelled": 80}
    guesses |= {"harmful": 5, "matched": 40, "known": 8, "right": 6}
    short["prompts"] |= {"left_out": left, "predicted": guesses}
    short["prompts"]["used"] |= {"held_out_pairs": 0}
    short["geometry"]["no_errors"] = {"dealt": "One harmless prompt is all of its kind."}
    found = notes(ContrastRun(short, ""))
    wanted = (
        "nothing is held out",
        "Rows of the matched file left out as duplicates or blank: 4.",
        "no matched prompt that the base answers is left for them: 3.",
        "every baseline rests on equally many benign prompts: 2.",
        "left out: c, d.",
        "Categories of 40 matched and 5 harmful prompts were predicted from activations at layer 2, the best of 6: right for 75 % of 80",
        "and for 6 of 8 matched prompts with a category; the largest category alone is 25 %",
        "baseline dealt has no error bars. One harmless prompt",
    )
    for words in wanted:
        assert any(words in note.replace("\N{NO-BREAK SPACE}", " ") for note in found), words
    assert len(found) == 7
    assert all(f'<p class="warning quiet">{note.split(",")[0]}' in render_contrast(ContrastRun(short, "")) for note in found)


def test_error_bars_stand_at_the_layer_where_they_are_least_and_at_every_layer():
    lines = {row[0].value: row for row in summary(run()).rows}
    assert set(lines) == {"unmatched", "matched"}
    first = [c.value for c in lines["unmatched"]]
    assert first == ["unmatched", "60", "2 of 3", "layer 1", "0.900", "5.00°", "0.900", "0.900", "0.900", "0.002", "1,200"]
    assert lines["unmatched"][4].small == "0.800 to 0.950"
    assert lines["matched"][8].value == "no pairs"
    whole = every_layer(run()).rows
    assert len(whole) == 6
    assert [c.value for c in whole[2]][-2:] == ["0.40", "no signal"]
    assert [c.strong for c in whole[2]][-2] is False
    assert [c.strong for c in whole[1]][-2] is True
    assert summary(run(geometry={})) is None
    assert "No error could be told." in render_contrast(run(geometry={}))


def test_the_terminal_shows_the_arms_that_are_no_controls():
    table = contrast_table(document())
    assert table.row_count == 3
    assert [str(c.header) for c in table.columns] == ["arm", "R", "refused", "benign refused", "KL tokens", "recovery"]


def test_a_folder_is_read_and_written_and_its_faults_are_named(tmp_path):
    with pytest.raises(UserError, match=r"run\.toml is missing; finish it with: resect contrast"):
        read_contrast(tmp_path)
    (tmp_path / "run.toml").write_text("a = 1\n")
    artifacts.write_json(tmp_path / "contrast.json", document(format="resect.contrast/9"))
    with pytest.raises(UserError, match=r"has format 'resect\.contrast/9'"):
        read_contrast(tmp_path)
    artifacts.write_json(tmp_path / "contrast.json", {key: value for key, value in document().items() if key != "grids"})
    with pytest.raises(UserError, match="lacks grids"):
        read_contrast(tmp_path)
    artifacts.write_json(tmp_path / "contrast.json", document())
    page = build_contrast_report(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"<h1>resect · contrast", page)
