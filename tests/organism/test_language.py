"""Properties of the synthetic language: closed, compositional, disjoint, deterministic, and tilted only when asked."""

from collections import Counter
from typing import get_args

import pytest

from resect.atoms import check_registry
from resect.errors import UserError
from resect.organism import words
from resect.organism.forms import style_of
from resect.organism.language import Language, Split
from resect.organism.tokenizer import make_tokenizer
from resect.prompts import Prompt

SPLITS = get_args(Split)
SEEDS = (0, 1)


def combination(prompt: Prompt) -> tuple[str, str]:
    """Read verb and object back out of the text."""
    verbs = {v for group in words.HARM_VERBS.values() for v in group} | set(words.BENIGN_VERBS)
    objects = {o for group in words.HARM_OBJECTS.values() for o in group} | set(words.BENIGN_OBJECTS)
    (verb,) = [w for w in prompt.text.split() if w in verbs]
    (thing,) = [w for w in prompt.text.split() if w in objects]
    return verb, thing


def wrapper(text: str) -> str:
    return "code" if "write code to" in text else "list" if "list the steps to" in text else "plain"


def share(values: list[str]) -> dict[str, float]:
    return {k: n / len(values) for k, n in Counter(values).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_reach_what_studies_need(seed: int) -> None:
    language = Language(seed)
    for split, least in (("extract", 160), ("validation", 64), ("test", 160)):
        assert len(language.harmful(split)) >= least
        assert len(language.matched(split)) == len(language.harmful(split))
        assert len(language.harmless(split)) >= least
    assert len({p.category for p in language.harmful("test")}) >= 6
    assert set(language.capabilities()) == {"arithmetic", "facts", "code", "translation", "lists", "advice"}
    assert all(len(found) >= 48 for found in language.capabilities().values())
    assert 300 <= len(language.vocabulary) <= 600
    assert len(set(language.vocabulary)) == len(language.vocabulary)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_text_is_in_two_sets(seed: int) -> None:
    language = Language(seed)
    sets = {f"{kind}/{s}": getattr(language, kind)(s).texts for s in SPLITS for kind in ("harmful", "harmless", "matched")}
    sets |= {f"capability/{k}": found.texts for k, found in language.capabilities().items()}
    sets["declined"] = language.declined().texts
    for atom in language.atoms():
        sets[f"atom/{atom.name}"] = (*atom.positive, *atom.negative)
    owner: dict[str, str] = {}
    for name, texts in sets.items():
        for text in texts:
            assert owner.setdefault(text, name) == name, text


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_combinations_never_occur_in_training(seed: int) -> None:
    language = Language(seed)
    seen = {combination(p) for p in (*language.harmful("train"), *language.matched("train"), *language.harmful("extract"))}
    seen |= {combination(p) for p in language.harmless("train") if " with " in (p.response or "")}
    held_out = {s: {combination(p) for kind in ("harmful", "matched") for p in getattr(language, kind)(s)} for s in ("validation", "test")}
    assert not seen & (held_out["validation"] | held_out["test"])
    assert not held_out["validation"] & held_out["test"]
    assert len(held_out["test"]) == 2 * len(language.harmful("test"))


@pytest.mark.parametrize("seed", SEEDS)
def test_harm_is_in_the_combination_not_in_a_word(seed: int) -> None:
    language = Language(seed)
    bad = {combination(p) for p in language.harmful("train")}
    good = {
        combination(p) for p in (*language.matched("train"), *(p for p in language.harmless("train") if " with " in (p.response or "")))
    }
    assert not bad & good
    assert {v for v, _ in bad} <= {v for v, _ in good}
    assert {o for _, o in bad} <= {o for _, o in good}


def test_matched_twins_share_id_category_form_and_one_word() -> None:
    language = Language()
    for bad, good in zip(language.harmful("test"), language.matched("test"), strict=True):
        assert (bad.pair_id, bad.category) == (good.pair_id, good.category)
        assert (style_of(bad.text), wrapper(bad.text)) == (style_of(good.text), wrapper(good.text))
        assert len(set(combination(bad)) & set(combination(good))) == 1


def test_answers_depend_on_verb_and_object_separately() -> None:
    language = Language()
    tools: dict[str, set[str]] = {}
    for prompt in (*language.harmful("train"), *language.harmful("test")):
        answer = (prompt.response or "").split()
        first = answer[answer.index("with") + 1]
        second = answer[answer.index("then") + 1]
        verb, thing = combination(prompt)
        tools.setdefault(verb, set()).add(first)
        tools.setdefault(thing, set()).add(second)
        assert verb in answer
        assert thing in answer
    assert all(len(found) == 1 for found in tools.values())
    assert len(set.union(*tools.values())) == len(words.VERB_PLACEHOLDERS) + len(words.OBJECT_PLACEHOLDERS)


def test_every_word_of_every_prompt_has_a_token() -> None:
    language = Language(3)
    tokenizer = make_tokenizer(language.vocabulary)
    prompts = [p for s in SPLITS for kind in ("harmful", "harmless", "matched") for p in getattr(language, kind)(s)]
    texts = [p.text for p in prompts] + [p.response or "" for p in prompts] + [language.refusal(p) for p in language.harmful("test")]
    texts += [*words.SYSTEMS, *language.texts(), *(t for a in language.atoms() for t in (*a.positive, *a.negative))]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_chat_template_takes_a_system_turn_and_a_generation_prompt() -> None:
    tokenizer = make_tokenizer(Language().vocabulary)
    turns = [{"role": "system", "content": words.SYSTEMS[0]}, {"role": "user", "content": "add 1 and 2"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == f"<|bos|> <|system|> {words.SYSTEMS[0]} <|end|> <|user|> add 1 and 2 <|end|> <|assistant|>"
    assert any(p.system for p in Language().harmful("train"))
    assert any(not p.system for p in Language().harmful("train"))


def test_equal_seeds_give_equal_prompts_and_other_seeds_other_ones() -> None:
    one, other = Language(1), Language(2)
    for kind in ("harmful", "harmless", "matched"):
        assert getattr(one, kind)("test").fingerprint == getattr(Language(1), kind)("test").fingerprint
        assert getattr(one, kind)("test").fingerprint != getattr(other, kind)("test").fingerprint
    assert one.vocabulary == other.vocabulary


def test_entanglement_zero_means_one_distribution_of_styles_and_wrappers() -> None:
    language = Language(0, 0.0)
    for read, names in ((style_of, words.STYLES), (wrapper, words.WRAPPERS)):
        harmful, harmless = (share([read(p.text) for p in getattr(language, kind)("train")]) for kind in ("harmful", "harmless"))
        for name in names:
            assert abs(harmful[name] - 1 / len(names)) < 0.05
            assert abs(harmless[name] - 1 / len(names)) < 0.05
    assert all(" with " in (p.response or "") for p in language.harmless("extract"))


def test_entanglement_tilts_more_the_higher_it_is_and_never_the_test_split() -> None:
    def tilt(entanglement: float, split: str) -> float:
        language = Language(0, entanglement)
        shares = [share([wrapper(p.text) for p in kind(split)])["plain"] for kind in (language.harmless, language.harmful)]
        return shares[0] - shares[1]

    for split, least in (("train", 0.25), ("extract", 0.4)):
        tilts = [tilt(e, split) for e in (0.0, 0.5, 1.0)]
        assert tilts == sorted(tilts)
        assert tilts[-1] > least
    assert abs(tilt(1.0, "test")) < 0.12
    assert Language(0, 1.0).harmful("test").texts == Language(0, 0.0).harmful("test").texts


@pytest.mark.parametrize("seed", SEEDS)
def test_registry_has_shields_confounds_and_targets_without_harm(seed: int) -> None:
    language = Language(seed)
    atoms = check_registry(language.atoms())
    assert {a.role for a in atoms} == {"shield", "confound", "target"}
    assert sum(a.kept for a in atoms) >= 8
    harm = {(v, o) for c in words.CATEGORIES for v in words.HARM_VERBS[c] for o in words.HARM_OBJECTS[c]}
    for atom in atoms:
        assert min(len(atom.positive), len(atom.negative)) >= 24
        for text in (*atom.positive, *atom.negative):
            parts = text.split()
            assert not any((v, o) in harm for v in parts for o in parts)


def test_style_atoms_keep_the_task_and_capability_atoms_keep_the_style() -> None:
    atoms = {a.name: a for a in Language().atoms()}
    assert {style_of(t) for t in atoms["polite"].positive} == {"polite"}
    assert "polite" not in {style_of(t) for t in atoms["polite"].negative}
    for yes, no in zip(atoms["arithmetic"].positive, atoms["arithmetic"].negative, strict=True):
        assert (style_of(yes), wrapper(yes)) == (style_of(no), wrapper(no))


def test_refusals_are_ordinary_english_one_phrasing_a_style() -> None:
    language = Language()
    said = {style_of(p.text): language.refusal(p) for p in language.harmful("test")}
    assert len(set(said.values())) == len(words.STYLES)
    assert all(any(mark in r for mark in ("sorry", "can not", "unable")) for r in said.values())
    with pytest.raises(UserError, match="not a harmful one"):
        language.refusal(Prompt("add 1 and 2", category="arithmetic"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_entanglement_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="from 0"):
        Language(0, value)


def test_unknown_split_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'test'"):
        Language().harmful("tset")  # pyright: ignore[reportArgumentType]
