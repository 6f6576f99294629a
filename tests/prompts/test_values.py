import hashlib

from resect.prompts import Prompt, PromptSet


def test_key_is_a_hash_of_the_text_alone():
    assert Prompt("hello").key == hashlib.sha256(b"hello").hexdigest()[:16]
    assert Prompt("hello", category="a").key == Prompt("hello").key != Prompt("hello ").key


def test_fingerprint_sees_every_field_and_the_order():
    base = Prompt("a", "b", "c", "d", "e")
    others = [Prompt("x", "b", "c", "d", "e"), Prompt("a", "x", "c", "d", "e"), Prompt("a", "b", "x", "d", "e")]
    others += [Prompt("a", "b", "c", "x", "e"), Prompt("a", "b", "c", "d", "x"), Prompt("a", "b", "c", "d", None)]
    marks = {PromptSet("s", (p,)).fingerprint for p in [base, *others]}
    assert len(marks) == len(others) + 1
    assert PromptSet("s", (base, others[0])).fingerprint != PromptSet("s", (others[0], base)).fingerprint
    assert PromptSet("s", (base,)).fingerprint == PromptSet("t", (base,), "elsewhere", 3).fingerprint


def test_where_and_first_keep_the_order_and_the_origin():
    prompts = PromptSet("s", tuple(map(Prompt, "abcd")), "file", 2)
    assert prompts.where([True, False, False, True]).texts == ("a", "d")
    assert prompts.first(2).texts == ("a", "b")
    assert prompts.first(9) == prompts
    assert prompts.first(1).source == "file"
    assert len(prompts) == 4
    assert [p.text for p in prompts] == list("abcd")
