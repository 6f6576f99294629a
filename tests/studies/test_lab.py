"""The lab: writers found once, results under names that hold all they were made from, settings that no name holds out of reach."""

from dataclasses import replace

import pytest
import torch

from resect.cache import Cache
from resect.edit.plan import EditPlan
from resect.models.load import wrap
from resect.prompts import Prompt, PromptSet
from resect.studies import lab as module
from resect.studies.lab import PASS, Lab
from resect.studies.selection import grid


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path)


@pytest.fixture
def lab(inputs, configured, cache):
    return Lab(inputs.model, configured(), cache)


def test_the_same_lab_gives_the_same_key_and_any_other_another(inputs, configured, cache, lab, bench):
    prompts = inputs.harmful.test
    recipe = bench.recipe("standard", 0.0)
    edit = recipe.plan(lab.writers, grid(lab, {0.0: recipe})[0])
    first, *others = edit.edits
    nudged = replace(first, u=first.u + 1e-7)

    def key(lab=lab, what="what", made_of=(prompts, edit)):
        return lab.key(what, *made_of).name

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


def test_the_tokens_of_a_prompt_are_in_the_key_and_not_its_text_alone(inputs, configured, cache, lab):
    prompt, tokenizer = Prompt("hello there"), inputs.model.tokenizer
    before = lab.key("x", prompt).name
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
        assert Lab(inputs.model, configured(), cache).key("x").name != lab.key("x").name
    finally:
        tokenizer.chat_template = template


def test_a_narrow_lab_has_its_settings_in_the_key_and_no_others_at_all(inputs, configured, cache, lab):
    other = Lab(inputs.model, configured(passes=3, max_new_tokens=25), cache)
    assert lab.only().key("x") == other.only().key("x")
    assert lab.only("seed").key("x") == other.only("seed").key("x")
    assert lab.only("seed", "passes").key("x") != other.only("seed", "passes").key("x")
    assert lab.only("max_new_tokens").key("x") != other.only("max_new_tokens").key("x")
    narrow = lab.only("seed")
    assert (narrow.config.seed, narrow.config.batch_tokens) == (lab.config.seed, lab.config.batch_tokens)
    assert set(vars(narrow.config)) == {"seed", *PASS}
    with pytest.raises(AttributeError, match="passes"):
        _ = narrow.config.passes
    assert lab.config.passes == 2


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


def test_a_model_with_hooks_of_somebody_else_has_no_cache(inputs, configured, cache, lab, caplog):
    handle = inputs.model.network.get_output_embeddings().register_forward_hook(lambda *_: None)
    try:
        hooked = Lab(inputs.model, configured(), cache)
    finally:
        handle.remove()
    assert hooked.key("x") is None
    assert "has hooks of somebody else" in caplog.text
    assert Lab(inputs.model, configured()).key("x") is None
    assert lab.key("x") is not None
