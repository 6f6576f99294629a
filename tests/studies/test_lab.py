"""The bench of a study: what its shortcuts do, and that nothing but time is different with them."""

import pytest
import torch

from resect.edit.plan import EditPlan, make_plan
from resect.evaluation.logprobs import next_token_logprobs
from resect.evaluation.verdicts import judge_markers
from resect.models.load import load_model
from resect.studies import sra
from resect.studies.lab import Lab
from resect.studies.steps import Steps


def window(lab, gamma, first):
    """Remove the same random direction from layers `first` on."""
    vectors = torch.randn(lab.layers, 1, lab.model.d_model, generator=torch.Generator().manual_seed(3))
    return make_plan(lab.writers, vectors, torch.tensor([gamma if layer >= first else 0.0 for layer in range(lab.layers)]))


@pytest.fixture
def lab(organism, configured):
    return Lab(load_model(organism.folder / "aligned", device="cpu"), configured())


@pytest.fixture
def plain(lab, configured):
    return Lab(lab.model, configured(shortcuts=[]))


def test_lower_layers_run_once_for_all_edits_above_them(lab, plain, inputs):
    prompts, calls = inputs.harmful.test.prompts[:8], []
    plans = [window(lab, gamma, 3) for gamma in (0.5, 1.0, 1.5)]
    expected = [plain.first_logprobs_of(prompts, [plan])[0] for plan in plans]
    lab.model.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    found = lab.first_logprobs_of(prompts, plans)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with lab.edited(plans[0]):
        tried = len(calls)
        lab.first_logprobs(prompts)
    assert len(calls) == tried  # nothing was left to compute there
    with lab.edited(window(lab, 1.0, 0)):
        lab.first_logprobs(prompts)
    assert len(calls) == tried + 1  # edited from the first layer on
    with lab.edited(window(lab, 1.0, 1)):
        with lab.edited(plans[0]):  # both are on, so only what lies below both is left alone
            nested = lab.first_logprobs(prompts)
        with plain.edited(plans[0]):
            assert torch.equal(nested, plain.first_logprobs(prompts))


def test_edits_with_a_batch_in_common_give_what_they_give_alone(lab, inputs, monkeypatch):
    prompts = inputs.harmless.test.prompts[:6]
    plans = [EditPlan(()), window(lab, 1.0, 0), window(lab, 1.5, 2), window(lab, 0.5, 4)]
    assert lab.at_once == 1  # a processor is busy with one
    apart = lab.first_logprobs_of(prompts, plans)
    monkeypatch.setattr(Lab, "at_once", 3)
    together = lab.first_logprobs_of(prompts, plans)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(apart, together, strict=True))
    assert torch.allclose(together[0], next_token_logprobs(lab.model, lab.render(prompts)), atol=1e-5)


def test_drafts_are_shared_by_edits_and_change_no_token(lab, plain, inputs):
    prompts, seen = inputs.harmful.test.prompts[:12], []
    with plain.edited(window(lab, 0.3, 0)):
        expected = plain.respond(prompts, max_new_tokens=16)
    lab.respond(prompts, max_new_tokens=16)
    lab.model.network.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["input_ids"].shape[1]), with_kwargs=True)
    with lab.edited(window(lab, 0.3, 0)):
        assert lab.respond(prompts, max_new_tokens=16) == expected
    assert seen[1] > 1  # a guess was verified


def test_a_rule_for_stopping_counts_only_with_its_shortcut(lab, plain, inputs):
    prompts = inputs.harmful.test.prompts[:4]
    whole = plain.respond(prompts, max_new_tokens=12, stop=lambda _prompt, _ids: True)
    assert [r.ids[:1] for r in whole] == [r.ids for r in lab.respond(prompts, max_new_tokens=12, stop=lambda _prompt, _ids: True)]
    assert "refuse" in judge_markers(whole)


def test_a_study_without_shortcuts_says_the_same(inputs, configured, result, tmp_path):
    plainly = sra.run(inputs, configured(shortcuts=[], arms=["sra"], lam_sweep=[], passes=1, ceilings=False), Steps(tmp_path))
    a, b = (s.study["arms"]["sra"] for s in (plainly, result))
    assert {k: a[k] for k in ("source", "window", "strength", "softness")} == {
        k: b[k] for k in ("source", "window", "strength", "softness")
    }
    quickly = [row for row in result.samples if row["arm"] in ("base", "sra")]
    assert [row | {"log_odds": 0} for row in plainly.samples] == [row | {"log_odds": 0} for row in quickly]
    a, b = (s.evaluation["arms"]["sra"] for s in (plainly, result))
    for name in ("refusal_rate", "benign_refusal_rate", "recovery"):
        assert a[name] == b[name]
    assert a["kl_first_token"]["value"] == pytest.approx(b["kl_first_token"]["value"], rel=1e-3)
