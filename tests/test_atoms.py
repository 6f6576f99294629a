"""The shipped registry keeps its promises, and atom files with mistakes get one clear sentence."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from resect import atoms
from resect.errors import UserError

# Stems that would turn a remark about a subject into a request for harm; the registry talks about deception and privacy, never asks for it.
HARM = re.compile(
    r"\b(kill\b|murder|poison|bomb|explosiv|weapon|hack (in|a)|malware|(write|send|make|craft) .*phish|meth\b|cocaine|suicid|rape"
    r"|porn|racis|slur|bypass|steal (a|the|my|some)|how (do|can|would) i (forge|cheat|lie to|scam|deceive|blackmail|stalk|spy))",
    re.IGNORECASE,
)
NAMED_BY_THE_FOLLOW_UP = {
    "safety_flagging", "deception", "privacy", "code_constraints", "coding", "logic", "math", "epistemic_uncertainty", "sentiment",
    "confidence", "importance", "creativity", "grammar_contrast", "fulfillment", "future_planning", "intellectual_property", "negation",
    "affirmative", "corporate_politeness", "legalese",
}  # fmt: skip
REGISTRY = atoms.shipped_atoms()


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def test_the_registry_is_whole() -> None:
    names = {a.name for a in REGISTRY}
    assert len(REGISTRY) >= 24
    assert names >= NAMED_BY_THE_FOLLOW_UP
    assert names >= {"curiosity", "imperative_negation"}
    assert {a.role for a in REGISTRY} == {"target", "shield", "confound"}


@pytest.mark.parametrize("atom", REGISTRY, ids=lambda a: a.name)
def test_each_side_has_enough_different_prompts(atom: atoms.Atom) -> None:
    for side in (atom.positive, atom.negative):
        assert len(side) >= 48
        assert len({p.lower() for p in side}) == len(side)
        assert all(4 <= len(p.split()) <= 30 and p == p.strip() and p.isascii() for p in side)
        openings = Counter(" ".join(p.lower().split()[:2]) for p in side)
        assert openings.most_common(1)[0][1] <= 8
    assert atom.description
    assert atom.source


@pytest.mark.parametrize("atom", REGISTRY, ids=lambda a: a.name)
def test_sides_have_the_same_length(atom: atoms.Atom) -> None:
    means = [sum(len(p.split()) for p in side) / len(side) for side in (atom.positive, atom.negative)]
    assert means[0] / means[1] == pytest.approx(1, abs=0.12)


def test_no_near_duplicates_within_or_across_sides_and_atoms() -> None:
    """Jaccard of word sets below 0.8, by an inverted index: a pair that close shares at least one rare word."""
    everything = [(f"{a.name}: {p}", words(p)) for a in REGISTRY for p in (*a.positive, *a.negative)]
    by_word: dict[str, list[int]] = {}
    for i, (_, bag) in enumerate(everything):
        for word in bag:
            by_word.setdefault(word, []).append(i)
    common = {w for w, rows in by_word.items() if len(rows) > 150}
    pairs = {pair for w, rows in by_word.items() if w not in common for pair in combinations(rows, 2)}
    close = [(everything[i][0], everything[j][0]) for i, j in pairs if jaccard(everything[i][1], everything[j][1]) >= 0.8]
    only_common = [text for text, bag in everything if bag <= common]
    assert close == []
    assert only_common == [] or len({words(t) for t in only_common}) == len(only_common)


def test_the_duplicate_check_sees_a_planted_duplicate() -> None:
    prompt = REGISTRY[0].positive[0]
    assert jaccard(words(prompt), words(prompt.upper() + " really")) >= 0.8


def test_no_prompt_asks_for_harm() -> None:
    assert HARM.search("How do I forge a signature?")
    assert [p for a in REGISTRY for p in (*a.positive, *a.negative) if HARM.search(p)] == []


def write(folder: Path, body: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(body, encoding="utf-8")
    return path


GOOD = (
    'format = "resect.atom/1"\nname = "mine"\nrole = "shield"\npositive = ["Add two.", "Add six."]\nnegative = ["Eat two.", "Eat six."]\n'
)


def test_a_user_file_is_read(tmp_path: Path) -> None:
    atom = atoms.load_atom(write(tmp_path, GOOD))
    assert (atom.name, atom.role, atom.kept) == ("mine", "shield", True)
    assert atoms.load_atoms(tmp_path) == (atom,)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (GOOD.replace("shield", "sheild"), "Unknown role in atom file .* 'sheild'; did you mean 'shield'"),
        (GOOD.replace("resect.atom/1", "resect.atom/9"), "an atom file starts with format"),
        (GOOD.replace("name = ", "nmae = "), "Unknown field in atom file .* 'nmae'; did you mean 'name'"),
        (GOOD.replace('"Add six."', '"Eat two."'), "has 'Eat two.' on both sides"),
        (GOOD.replace('["Add two.", "Add six."]', '["Add two."]'), "has 1 positive prompts; at least 2 are needed"),
        (GOOD.replace('["Add two.", "Add six."]', '["Add two.", 3]'), "needs 'positive' as a list of non-empty texts"),
        ("format = [", "is not valid TOML"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        atoms.load_atom(write(tmp_path, body))


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read atom file"):
        atoms.load_atoms(tmp_path / "none.toml")
    with pytest.raises(UserError, match="has no atom files"):
        atoms.load_atoms(tmp_path)


def test_a_registry_needs_unique_names_and_something_to_keep() -> None:
    target = atoms.Atom("a", "target", ("x y", "x z"), ("y", "z"))
    with pytest.raises(UserError, match="nothing to protect"):
        atoms.check_registry([target])
    with pytest.raises(UserError, match="Two atoms are named 'a'"):
        atoms.check_registry([target, target])
