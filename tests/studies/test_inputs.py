"""What a study works on: disjoint, large enough, and known by a fingerprint."""

from dataclasses import replace

import pytest

from resect.atoms import Atom
from resect.errors import UserError
from resect.prompts import Prompt, PromptSet
from resect.studies.inputs import from_organism, from_prompts, gamma_atom, near_twins

ATOMS = (
    Atom("coding", "shield", ("write code", "fix code"), ("write tea", "fix tea")),
    Atom("illegality", "target", ("law one", "law two"), ("walk one", "walk two")),
)


def side(name, count=120, **extra):
    return PromptSet(name, tuple(Prompt(f"{name} {i}", **extra) for i in range(count)))


@pytest.fixture
def make(inputs, configured):
    """A function: inputs from two prompt sets with the organism's model."""

    def build(harmful=None, harmless=None, *, atoms=ATOMS, config=None, **extra):
        sides = {"harmful": harmful or side("bad"), "harmless": harmless or side("good")}
        return from_prompts(inputs.model, **sides, atoms=atoms, config=config or configured(), **extra)

    return build


def test_the_splits_are_disjoint_and_no_larger_than_asked_for(make):
    made = make()
    for split in (made.harmful, made.harmless):
        sizes = {name: len(part) for name, part in split.items()}
        assert sizes["extract"] == 32
        assert sizes["validation"] == 16
        assert sizes["test"] == 24
        texts = [text for _, part in split.items() for text in part.texts]
        assert len(set(texts)) == len(texts)


def test_a_sorted_file_gives_a_fair_sample(make):
    rows = tuple(Prompt(f"bad {i}", category="ab"[i >= 200]) for i in range(400))
    categories = [p.category for p in make(PromptSet("bad", rows)).harmful.extract]
    assert 4 < categories.count("b") < 28


def test_too_few_prompts_are_named_with_side_and_split(make):
    with pytest.raises(UserError, match=r"Only \d harmful prompts fall to (extract|validation|test); at least 8 are needed, give a larger"):
        make(side("bad", 12))


def test_a_prompt_on_both_sides_is_refused(make):
    shared = PromptSet("good", (*side("good").prompts, Prompt("bad 7")))
    with pytest.raises(UserError, match=f"share 1 prompts .the first has key {Prompt('bad 7').key}."):
        make(harmless=shared)


def test_a_prompt_that_is_also_an_atoms_is_refused(make):
    atom = Atom("coding", "shield", ("bad 3", "fix code"), ("write tea", "fix tea"))
    with pytest.raises(UserError, match=f"Prompt {Prompt('bad 3').key} stands in atom 'coding' and in the"):
        make(atoms=(atom, ATOMS[1]))


def test_questions_need_answers_and_are_limited(make):
    answered = PromptSet("sums", tuple(Prompt(f"{i} and 1", response=str(i + 1)) for i in range(9)))
    assert len(make(questions={"sums": answered}).questions["sums"]) == 4
    with pytest.raises(UserError, match="Question file 'sums' has no reference answers; perplexity needs a response"):
        make(questions={"sums": side("sums", 3)})


def test_the_fingerprint_is_of_everything_that_is_read(make, configured):
    base = make()
    assert make().fingerprint == base.fingerprint
    others = [
        make(side("worse")),
        make(harmless=side("better")),
        make(atoms=(replace(ATOMS[0], positive=("write code", "mend code")), ATOMS[1])),
        make(atoms=(replace(ATOMS[0], role="confound"), ATOMS[1])),
        make(texts=("some text",)),
        make(questions={"sums": PromptSet("sums", (Prompt("1 and 1", response="2"),))}),
        make(config=configured(seed=1)),
        make(side("bad", system="be brief")),
    ]
    assert len({base.fingerprint, *(o.fingerprint for o in others)}) == len(others) + 1


def test_the_organism_brings_its_twin_and_prompts_of_both_kinds(organism, inputs, configured):
    assert inputs.twin is not None
    assert inputs.twin.fingerprint != inputs.model.fingerprint
    assert len(inputs.harmful.extract) == 32
    matched = set(organism.language.matched("test").texts)
    assert 0 < sum(text in matched for text in inputs.harmless.test.texts) < 24
    assert not set(inputs.harmless.extract.texts) & set(organism.language.matched("extract").texts)
    assert inputs.questions
    assert inputs.texts
    assert from_organism(organism, config=configured()).fingerprint == inputs.fingerprint


def test_the_atom_of_the_strength_rule(make, configured):
    assert gamma_atom(make(), configured()) == "illegality"
    deception = replace(ATOMS[1], name="deception")
    assert gamma_atom(make(atoms=(*ATOMS, replace(deception, positive=("a lie", "a trick")))), configured()) == "deception"
    assert gamma_atom(make(), configured(gamma_atom="coding")) == "coding"
    with pytest.raises(UserError, match="Unknown gamma atom 'codding'; did you mean 'coding'"):
        gamma_atom(make(), configured(gamma_atom="codding"))
    with pytest.raises(UserError, match="The energy rule needs a target atom and the registry has none"):
        gamma_atom(make(atoms=ATOMS[:1]), configured())


def test_near_duplicates_between_splits_are_counted(make):
    long = [Prompt(f"please tell me now how one would make the very large thing number {i} at home today") for i in range(120)]
    assert near_twins(make(PromptSet("bad", tuple(long)))) > 100
    assert near_twins(make(side("b", 120))) < near_twins(make(PromptSet("bad", tuple(long))))
