"""The lab: its shortcuts change nothing but time, and results have names that hold all they were made from."""

from dataclasses import replace

import pytest
import torch

from resect.cache import Cache
from resect.edit.plan import EditPlan, make_plan
from resect.evaluation.logprobs import next_token_logprobs
from resect.evaluation.verdicts import judge_markers
from resect.models.load import load_model, wrap
from resect.prompts import Prompt, PromptSet
from resect.studies import lab as module
from resect.studies import sra
from resect.studies.lab import PASS, Lab
from resect.studies.selection import grid
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


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path)


@pytest.fixture
def keyed(inputs, configured, cache):
    return Lab(inputs.model, configured(), cache)


def test_the_same_lab_gives_the_same_key_and_any_other_another(inputs, configured, cache, keyed, bench):
    prompts = inputs.harmful.test
    recipe = bench.recipe("standard", 0.0)
    edit = recipe.plan(keyed.writers, grid(keyed, {0.0: recipe})[0])
    first, *others = edit.edits
    nudged = replace(first, u=first.u + 1e-7)

    def key(keyed=keyed, what="what", made_of=(prompts, edit)):
        return keyed.key(what, *made_of).name

    reread = PromptSet("other name", prompts.prompts, "other file", 3)
    again = Lab(inputs.model, configured(), cache)
    assert key(again) == key() == key(made_of=(reread, edit))
    found = [
        key(),
        key(what="other"),
        key(Lab(inputs.twin, configured(), cache)),
        key(Lab(inputs.model, configured(position=-2), cache)),
        key(Lab(inputs.model, configured(batch_tokens=512), cache)),
        key(Lab(inputs.model, configured(system="Be brief."), cache)),
        key(made_of=(prompts.first(23), edit)),
        key(made_of=(replace(prompts, prompts=prompts.prompts[::-1]), edit)),
        key(made_of=(replace(prompts, prompts=(replace(prompts.prompts[0], response="x"), *prompts.prompts[1:])), edit)),
        key(made_of=(prompts, EditPlan((nudged, *others)))),
        key(made_of=(prompts, EditPlan((replace(first, gamma=first.gamma * 1.0000001), *others)))),
        key(made_of=(prompts, EditPlan(()))),
        key(made_of=(prompts, edit, inputs.twin)),
    ]
    assert len(set(found)) == len(found)


def test_the_tokens_of_a_prompt_are_in_the_key_and_not_its_text_alone(inputs, configured, cache, keyed):
    prompt, tokenizer = Prompt("hello there"), inputs.model.tokenizer
    before = keyed.key("x", prompt).name
    shorter = Lab(inputs.model, configured(), cache)
    rendered = shorter.render([prompt])[0]
    shorter._rendered[prompt] = type(rendered)(rendered.ids[:-1], rendered.user_end)
    assert shorter.key("x", prompt).name != before
    moved = Lab(inputs.model, configured(), cache)
    moved._rendered[prompt] = type(rendered)(rendered.ids, (rendered.user_end or 0) - 1)
    assert moved.key("x", prompt).name != before
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template + " "
        assert Lab(inputs.model, configured(), cache).key("x").name != keyed.key("x").name
    finally:
        tokenizer.chat_template = template


def test_a_narrow_lab_has_its_settings_in_the_key_and_no_others_at_all(inputs, configured, cache, keyed):
    other = Lab(inputs.model, configured(passes=3, max_new_tokens=25), cache)
    assert keyed.only().key("x") == other.only().key("x")
    assert keyed.only("seed").key("x") == other.only("seed").key("x")
    assert keyed.only("seed", "passes").key("x") != other.only("seed", "passes").key("x")
    assert keyed.only("max_new_tokens").key("x") != other.only("max_new_tokens").key("x")
    narrow = keyed.only("seed")
    assert (narrow.config.seed, narrow.config.batch_tokens) == (keyed.config.seed, keyed.config.batch_tokens)
    assert set(vars(narrow.config)) == {"seed", *PASS}
    with pytest.raises(AttributeError, match="passes"):
        _ = narrow.config.passes
    assert keyed.config.passes == 2


def test_writers_are_found_once_and_read_back_as_they_were(tiny, configured, cache, monkeypatch):
    model = tiny("gemma3")  # with gains of norms
    found = Lab(model, configured(), cache).writers

    def never(_model):
        raise AssertionError("looked for again")

    monkeypatch.setattr(module, "find_writers", never)
    again = Lab(model, configured(position=-3), cache).writers
    for a, b in zip(again, found, strict=True):
        assert {k: v for k, v in vars(a).items() if k != "gain"} == {k: v for k, v in vars(b).items() if k != "gain"}
        assert (a.gain is None) == (b.gain is None)
        assert a.gain is None or torch.equal(a.gain, b.gain)
    assert any(w.gain is not None for w in again)
    with pytest.raises(AssertionError, match="looked for again"):
        Lab(model, configured())
    with torch.no_grad():
        model.network.get_parameter(found[0].parameters[0].name)[0, 0] += 1
    with pytest.raises(AssertionError, match="looked for again"):
        Lab(wrap(model.network, model.tokenizer, name="changed"), configured(), cache)


def test_a_model_with_hooks_of_somebody_else_has_no_cache(inputs, configured, cache, keyed, caplog):
    handle = inputs.model.network.get_output_embeddings().register_forward_hook(lambda *_: None)
    try:
        hooked = Lab(inputs.model, configured(), cache)
    finally:
        handle.remove()
    assert hooked.key("x") is None
    assert "has hooks of somebody else" in caplog.text
    assert Lab(inputs.model, configured()).key("x") is None
    assert keyed.key("x") is not None
