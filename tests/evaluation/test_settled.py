from hypothesis import given, settings
from hypothesis import strategies as st

from resect.evaluation.markers import shipped_markers
from resect.evaluation.settled import settled_refusal, stop_when_settled
from resect.evaluation.verdicts import judge
from resect.generation import Response
from resect.models.chat import Rendered

MARKERS = shipped_markers()
REFUSAL = "I'm sorry, but I can't help with that request. It would not be right. Ask me for something else. Thank you."
ANSWER = "Here is how to bake bread at home. Mix the flour with water. Let the dough rest for an hour. Then bake it until it is brown."
# What refusals, answers and everything that makes an opening hard to tell are made of.
PIECES = (
    "I can't help with that", "I can not", "I cannot", "hing like it", "I'm sorry", "Sorry.", "Sure, here is how", "but I will do it",
    "but", "here it is:", "however", " ", "  ", "\n", "\n\n", ". ", "! ", ".", "?", '"', "\u201c", "\u201d", "'", "* ", "# ", "> ", "1. ",
    "a", "the bread is brown", "e\u0301", "\u0301", "\ufb01", "\u1100\u1161\u11a8", "\u3002", "Je ne peux pas vous aider",
    "\u3059\u307f\u307e\u305b\u3093\u3001\u304a\u624b\u4f1d\u3044\u3067\u304d\u307e\u305b\u3093", "Lo siento, no puedo ayudar con eso",
    "word " * 12, "don ' t", " t", "is n t", "I would", "```", "\ufffd", "so long a sentence that goes on and on ",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=24).map("".join)
LONG = st.lists(st.sampled_from(PIECES), min_size=12, max_size=40).map("".join)


def said(text, *, finished=False):
    return Response((1,), text, finished)


@settings(max_examples=400)
@given(LONG, TEXT, st.booleans())
def test_what_is_settled_stays_so_whatever_follows(begun, rest, finished):
    found = settled_refusal(said(begun), markers=MARKERS)
    if found is not None:
        whole = judge(said(begun + rest, finished=finished), markers=MARKERS)
        assert (whole.verdict == "refuse") is found
        assert (judge(said(begun), markers=MARKERS).verdict == "refuse") is found


@settings(max_examples=200)
@given(st.sampled_from([REFUSAL, ANSWER]), TEXT, st.integers(0, 200))
def test_a_long_text_is_settled_at_every_length_or_open(start, rest, cut):
    text = start + " " + rest
    found = settled_refusal(said(text[:cut]), markers=MARKERS)
    assert found is None or found is (judge(said(text), markers=MARKERS).verdict == "refuse")


def test_it_does_get_settled_both_ways():
    tail = " And so on, and so forth, with many more words that say nothing at all about it."
    assert settled_refusal(said(REFUSAL + tail), markers=MARKERS) is True
    assert settled_refusal(said(ANSWER + tail), markers=MARKERS) is False
    assert settled_refusal(said(REFUSAL[:40]), markers=MARKERS) is None  # "… but here it is" may follow
    assert settled_refusal(said("Sorry. Sorry. Sorry. " + tail), markers=MARKERS) is None
    assert settled_refusal(said('He said: "' + REFUSAL + tail), markers=MARKERS) is None  # the quotation may end


def test_the_rule_stops_refusals_and_answers_only_where_asked(tiny):
    model, prompt = tiny("qwen3"), Rendered((5, 6), 1)
    tail = " And so on, and so forth, with many more words that say nothing at all about it."
    refusal, answer = (tuple(model.tokenizer(text + tail)["input_ids"]) for text in (REFUSAL, ANSWER))
    flag, verdict = (stop_when_settled(model, refusal_only=only) for only in (True, False))
    stops = {
        name: next((n for n in range(1, len(ids)) if rule(prompt, ids[:n])), None)
        for name, rule, ids in (("rf", flag, refusal), ("rv", verdict, refusal), ("af", flag, answer), ("av", verdict, answer))
    }
    assert stops["av"] is None
    assert stops["rf"] == stops["rv"] < len(refusal) - 16
    assert stops["af"] < len(answer) - 16
