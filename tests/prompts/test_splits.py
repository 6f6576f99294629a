import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet, check_disjoint, near_duplicates, split_by_hash, split_evenly

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
TEXTS = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=30)


def prompt_set(texts, name="set"):
    return PromptSet(name, tuple(Prompt(t) if isinstance(t, str) else t for t in texts))


def places(sets):
    return {prompt.text: name for name, prompts in sets.items() for prompt in prompts}


@given(TEXTS, TEXTS)
def test_other_prompts_move_nothing(texts, more):
    small, large = (places(split_by_hash(prompt_set(t), FRACTIONS)) for t in (texts, [*more, *(t for t in texts if t not in more)]))
    assert small.keys() == set(texts)
    assert {t: large[t] for t in texts} == small


@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from("pqrs")), max_size=40))
def test_pairs_stay_together_across_files(rows):
    first = prompt_set([Prompt(text, pair_id=pair) for text, pair in rows])
    second = prompt_set([Prompt(f"other {text}", pair_id=pair) for text, pair in rows])
    where: dict[str, set[str]] = {}
    for sets in (split_by_hash(first, FRACTIONS), split_by_hash(second, FRACTIONS)):
        for name, prompts in sets.items():
            for prompt in prompts:
                where.setdefault(prompt.pair_id, set()).add(name)
    assert all(len(names) == 1 for names in where.values())


def test_sizes_follow_the_fractions_and_the_seed_changes_the_split():
    prompts = prompt_set([f"prompt {i}" for i in range(4000)])
    sets = split_by_hash(prompts, FRACTIONS)
    for name, fraction in FRACTIONS.items():
        assert len(sets[name]) / 4000 == pytest.approx(fraction, abs=0.03)
        assert sets[name].name == f"set/{name}"
    order = [int(t.split()[1]) for t in sets["train"].texts]
    assert order == sorted(order)
    assert places(split_by_hash(prompts, FRACTIONS, seed=1)) != places(sets)
    check_disjoint(sets)


def test_the_split_is_the_same_on_every_machine():
    # The first 56 bits of SHA-256("0:text:a") and so on, as fractions of 2**56: 0.794, 0.337, 0.896, 0.736, 0.885, 0.023.
    sets = split_by_hash(prompt_set(list("abcdef")), FRACTIONS)
    assert {name: prompts.texts for name, prompts in sets.items()} == {"train": ("b", "f"), "validation": ("a", "d"), "test": ("c", "e")}


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}, {"a": float("nan")}])
def test_fractions_must_add_up(fractions):
    with pytest.raises(UserError, match=r"must be positive and add up to 1, got"):
        split_by_hash(prompt_set(["a"]), fractions)


def test_overlap_is_refused_with_both_names_and_a_hash_not_the_text():
    sets = {"harmful": prompt_set(["one", "Secret  Words"]), "harmless": prompt_set(["secret words", "two"]), "third": prompt_set(["x"])}
    key = Prompt("Secret  Words").key
    with pytest.raises(UserError, match=rf"'harmful' and 'harmless' share 1 prompts \(the first has key {key}\)") as caught:
        check_disjoint(sets)
    assert "ecret" not in str(caught.value)
    check_disjoint({k: v for k, v in sets.items() if k != "harmless"})


def jaccard(a, b):
    a, b = set(a.lower().split()), set(b.lower().split())
    return len(a & b) / len(a | b)


SENTENCES = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8).map(" ".join), max_size=12)


@given(SENTENCES, SENTENCES, SENTENCES, st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.8, 1.0]))
def test_near_duplicates_equal_brute_force(one, two, three, threshold):
    sets = {"one": one, "two": two, "three": three}
    found = near_duplicates({name: prompt_set(texts) for name, texts in sets.items()}, threshold=threshold)
    expected = [
        (first, Prompt(a).key, second, Prompt(b).key, jaccard(a, b))
        for first, second in (("one", "two"), ("one", "three"), ("two", "three"))
        for a in sets[first]
        for b in sets[second]
        if jaccard(a, b) >= threshold
    ]
    got = [(d.first_set, d.first, d.second_set, d.second, d.similarity) for d in found]
    assert sorted(got) == sorted(expected)


def test_near_duplicates_of_large_sets_are_fast():
    words = [f"w{i}" for i in range(400)]
    common = ["the", "a", "of", "to", "how", "write", "please", "in"]

    def texts(step):
        return [" ".join([*common, *(words[(i * step + k * k * 7) % 400] for k in range(8))]) for i in range(1500)]

    sets = {"a": prompt_set(texts(3)), "b": prompt_set(texts(11))}
    start = time.process_time()
    near_duplicates(sets)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_near_duplicate_threshold(threshold):
    with pytest.raises(UserError, match=r"threshold must be above 0 and at most 1"):
        near_duplicates({}, threshold=threshold)


@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from("abc")), unique_by=lambda row: row[0], max_size=60))
def test_every_category_is_divided_by_the_fractions(rows):
    prompts = prompt_set([Prompt(text, category=category) for text, category in rows])
    parts = split_evenly(prompts, FRACTIONS)
    assert sorted(p.text for part in parts.values() for p in part) == sorted(p.text for p in prompts)
    for category in "abc":
        count = sum(p.category == category for p in prompts)
        for name, share in FRACTIONS.items():
            assert abs(sum(p.category == category for p in parts[name]) - share * count) <= 1


def test_partners_in_another_file_go_along_and_others_are_dealt_out():
    harmful = prompt_set([Prompt(f"h{i}", category="abc"[i % 3], pair_id=str(i)) for i in range(30)])
    parts = split_evenly(harmful, FRACTIONS)
    where = {p.pair_id: name for name, part in parts.items() for p in part}
    matched = prompt_set([Prompt(f"m{i}", category="a", pair_id=str(i)) for i in range(40)])
    found = split_evenly(matched, FRACTIONS, partners=where)
    assert all(where.get(p.pair_id, name) == name for name, part in found.items() for p in part)
    assert [sum(p.pair_id not in where for p in part) for part in found.values()] == [6, 2, 2]
    assert places(split_evenly(harmful, FRACTIONS, seed=1)) != places(parts)
