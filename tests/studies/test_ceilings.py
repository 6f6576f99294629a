"""What any edit could restore: the twin's own blocks, and the subspace that safety tuning moved."""

from dataclasses import replace

import pytest
import torch

from resect.models.load import fingerprint
from resect.studies import ceilings
from resect.studies.behaviour import Asked


@pytest.fixture(scope="module")
def twin_said(bench, inputs):
    return bench.lab.respond(inputs.harmful.validation, max_new_tokens=bench.config.max_new_tokens, model=inputs.twin)


def test_reverting_every_block_gives_the_twin_back_and_the_model_is_put_right(bench, inputs):
    before = fingerprint(inputs.model.network)
    curve = ceilings.layer_revert(bench.lab, inputs.twin, bench.behaviour, bench.reference)
    assert [point["first_layer"] for point in curve] == list(range(6))
    assert curve[0]["recovery"]["value"] > 0.9
    assert curve[0]["refusal_rate"]["value"] == 0
    assert curve[0]["recovery"]["value"] >= curve[-1]["recovery"]["value"]
    assert fingerprint(inputs.model.network) == before


def test_a_failure_puts_the_model_right_too(bench, inputs, monkeypatch):
    before = fingerprint(inputs.model.network)

    def fail(*_args, **_options):
        raise RuntimeError("stop")

    monkeypatch.setattr(type(bench.lab), "respond", fail)
    with pytest.raises(RuntimeError, match="stop"):
        ceilings.layer_revert(bench.lab, inputs.twin, bench.behaviour, bench.reference)
    assert fingerprint(inputs.model.network) == before


def test_the_oracle_names_a_figure_for_every_rank(bench, inputs, twin_said):
    rows = ceilings.oracle(bench.lab, inputs.twin, bench.behaviour, bench.reference, twin_said)
    assert [row["rank"] for row in rows] == [1, 2, 4, 8]
    for row in rows:
        assert row["recovery"]["n"] == row["refusal_rate"]["n"] == 24
    base = sum(v == "refuse" for v in bench.behaviour.harmful["test"].verdicts) / 24
    assert max(row["recovery"]["value"] for row in rows) > 0.2
    assert min(row["refusal_rate"]["value"] for row in rows) < base


def test_rank_is_bounded_by_the_prompts(bench, inputs, twin_said):
    few = bench.behaviour.harmful["extract"].where([i < 3 for i in range(len(bench.behaviour.harmful["extract"].prompts))])
    assert isinstance(few, Asked)
    behaviour = replace(bench.behaviour, harmful={**bench.behaviour.harmful, "extract": few})
    rows = ceilings.oracle(bench.lab, inputs.twin, behaviour, bench.reference, twin_said)
    assert [row["rank"] for row in rows] == [1, 2]
    assert torch.isfinite(torch.tensor([row["recovery"]["value"] for row in rows])).all()
