"""Topic strength: the default is the shipped language to the letter, and topics show more the higher it is."""

import hashlib
import json
from collections import Counter
from statistics import fmean

import pytest

from resect.errors import UserError
from resect.organism import words
from resect.organism.language import Language
from resect.organism.shipped import load_organism
from resect.organism.tokenizer import make_tokenizer
from resect.organism.topics import DEFAULT_TOPIC, Topic, lenders
from resect.organism.training import aligned_rows
from resect.prompts import Prompt, PromptSet

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOPIC_OF = {word: c for lexicon in (words.HARM_VERBS, words.HARM_OBJECTS) for c, found in lexicon.items() for word in found}
TOPIC_OF |= {c: c for c in words.CATEGORIES}
# What the language was when the shipped organism was trained: every prompt, answer, atom and token of seeds 0 and 3.
WRITTEN_BEFORE = {0: "9424abcc9f8d2424", 3: "005e91ec207daf60"}


def own_words(prompt: Prompt) -> int:
    """Count the words of a request that belong to its own topic."""
    return sum(TOPIC_OF.get(word) == prompt.category for word in prompt.text.split())


def topic_words(prompts: PromptSet) -> float:
    """Return the mean number of words of any topic in a request."""
    return fmean(sum(word in TOPIC_OF for word in p.text.split()) for p in prompts)


def parts(prompt: Prompt) -> tuple[str, str]:
    """Read verb and object back out of the text."""
    verbs = {*words.BENIGN_VERBS, *(v for found in words.HARM_VERBS.values() for v in found)}
    things = {*words.BENIGN_OBJECTS, *(o for found in words.HARM_OBJECTS.values() for o in found)}
    (verb,) = [w for w in prompt.text.split() if w in verbs]
    (thing,) = [w for w in prompt.text.split() if w in things]
    return verb, thing


def written(language: Language) -> str:
    """Return a digest of everything the language says."""
    sets = [getattr(language, kind)(s) for s in ("train", "extract", "validation", "test") for kind in ("harmful", "matched", "harmless")]
    sets += [language.declined(), *language.capabilities().values()]
    atoms = [[a.name, a.role, a.positive, a.negative] for a in language.atoms()]
    told = [[s.fingerprint for s in sets], atoms, language.vocabulary, language.texts()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("seed", "digest"), WRITTEN_BEFORE.items())
def test_the_default_strength_is_the_language_without_the_knob(seed: int, digest: str) -> None:
    assert written(Language(seed)) == written(Language(seed, topic=DEFAULT_TOPIC)) == digest
    assert written(Language(seed, topic=DEFAULT_TOPIC + 0.01)) != digest


def test_the_shipped_organism_speaks_it_and_its_record_needs_no_strength() -> None:
    organism = load_organism()
    assert organism.topic == DEFAULT_TOPIC
    assert "topic" not in organism.aligned().name
    tokenizer = make_tokenizer(organism.language.vocabulary)
    assert organism.aligned().tokenizer.get_vocab() == tokenizer.get_vocab()
    assert len(Language(topic=1.0).vocabulary) == len(organism.language.vocabulary) + len(words.CATEGORIES)


@pytest.mark.parametrize("kind", ["harmful", "matched"])
def test_a_request_shows_its_topic_more_the_higher_the_strength(kind: str) -> None:
    shown = [fmean(map(own_words, getattr(Language(3, topic=t), kind)("extract"))) for t in STRENGTHS]
    assert shown == sorted(shown)
    words_at_default = 2 if kind == "harmful" else 1
    assert shown[2] == words_at_default
    assert shown[0] == pytest.approx(words_at_default / len(words.CATEGORIES), abs=0.12)  # chance
    assert shown[4] == words_at_default + 1


def test_unmatched_extraction_prompts_have_fewer_topic_words_the_higher_the_strength() -> None:
    apart = [topic_words(language.matched("extract")) - topic_words(language.harmless("extract")) for language in map(at, STRENGTHS)]
    assert apart == sorted(apart)
    assert apart[0] == 0.0  # unmatched ones have one word of harm, as matched ones have
    assert topic_words(at(1.0).harmless("extract")) == 0.0
    assert topic_words(at(1.0).harmless("test")) > 0.2  # the knob leaves the test split's mixture alone


def at(strength: float) -> Language:
    return Language(3, topic=strength)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_twins_stay_twins_and_harm_stays_in_the_combination(strength: float) -> None:
    language, seen = at(strength), set[tuple[str, str]]()
    for split in ("train", "validation", "test"):
        for bad, good in zip(language.harmful(split), language.matched(split), strict=True):
            assert (bad.pair_id, bad.category) == (good.pair_id, good.category)
            assert len({*parts(bad)} & {*parts(good)}) == 1
            assert (bad.category in bad.text.split()) == (good.category in good.text.split())
            assert sum(word in TOPIC_OF for word in parts(bad)) == 2
            assert sum(word in TOPIC_OF for word in parts(good)) == 1
    for split in ("validation", "test", "train"):
        rows = {parts(p) for kind in ("harmful", "matched") for p in getattr(language, kind)(split)}
        assert not rows & seen
        seen |= rows
    benign = {parts(p) for split in ("train", "validation", "test") for p in language.foreign(split)}
    assert not benign & {parts(p) for split in ("train", "test") for p in language.harmful(split)}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_word_has_a_token_and_no_text_is_in_two_sets(strength: float) -> None:
    language, owner = at(strength), dict[str, str]()
    sets = {
        f"{k}/{s}": getattr(language, k)(s) for s in ("train", "extract", "validation", "test") for k in ("harmful", "harmless", "matched")
    }
    sets |= {f"foreign/{s}": language.foreign(s) for s in ("train", "validation", "test")}
    known = set(language.vocabulary)
    for name, prompts in sets.items():
        for prompt in prompts:
            assert owner.setdefault(prompt.text, name) == name
            assert {*prompt.text.split(), *(prompt.response or "").split()} <= known


def test_refusal_is_learnt_from_topic_and_intent_only_above_the_default() -> None:
    for strength, rows in ((0.0, 0), (0.5, 0), (0.75, 720), (1.0, 1440)):
        answered = at(strength).foreign("train")
        assert len(answered) == rows
        assert {p.text for p in answered} <= {p.text for p, said in aligned_rows(at(strength)) if said == p.response}
    for prompt in at(1.0).foreign("test"):
        verb, thing = parts(prompt)
        assert TOPIC_OF[verb] != TOPIC_OF[thing] == prompt.category
        assert prompt.category in prompt.text.split()


@pytest.mark.parametrize("seed", [0, 7])
def test_lending_keeps_every_word_as_frequent_and_no_combination_twice(seed: int) -> None:
    assert all(of == {c: c for c in words.CATEGORIES} for pair in lenders(Topic(), seed).values() for of in pair)
    lent = lenders(Topic(0.0), seed)
    made = [(words.HARM_VERBS[v[c]][i], words.HARM_OBJECTS[o[c]][j]) for (i, j), (v, o) in lent.items() for c in words.CATEGORIES]
    assert len(set(made)) == len(made) == 720
    assert set(Counter(verb for verb, _ in made).values()) == {12}
    assert set(Counter(thing for _, thing in made).values()) == {10}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"from 0.*0\.5 is usual"):
        Language(0, topic=value)
