from hypothesis import given
from hypothesis import strategies as st

from resect.generation.drafts import Drafts
from resect.models.chat import Rendered

PROMPT, OTHER = Rendered((5, 6), 1), Rendered((5, 7), 1)


def test_a_guess_is_how_the_newest_response_with_the_same_beginning_goes_on():
    drafts = Drafts()
    drafts.learn(PROMPT, (1, 2, 3))
    drafts.learn(PROMPT, (1, 4, 5, 6))
    assert drafts.guess(PROMPT, (1,)) == (4, 5, 6)
    assert drafts.guess(PROMPT, (1, 2)) == (3,)
    assert drafts.guess(PROMPT, (1, 2, 3)) == ()
    assert drafts.guess(PROMPT, (2,)) == ()
    assert drafts.guess(OTHER, (1,)) == ()
    drafts.learn(PROMPT, (1, 2, 3))
    assert drafts.guess(PROMPT, (1,)) == (2, 3)


def test_the_beginning_of_a_known_response_teaches_nothing():
    drafts = Drafts()
    drafts.learn(PROMPT, (1, 2, 3))
    drafts.learn(PROMPT, (1, 2))
    assert drafts.guess(PROMPT, (1,)) == (2, 3)


def test_only_a_few_responses_of_a_prompt_are_remembered():
    drafts = Drafts()
    for last in range(10):
        drafts.learn(PROMPT, (last, 9))
    assert [drafts.guess(PROMPT, (last,)) for last in range(10)] == [()] * 6 + [(9,)] * 4


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_the_width_is_that_of_a_guess_or_none(lengths):
    width = Drafts().width([(0,) * n for n in lengths], most=99)
    assert width in {0, *lengths}
    assert width == lengths[0] if len(set(lengths)) == 1 else True


def test_rows_without_a_guess_make_guessing_dear():
    drafts = Drafts()
    assert drafts.width([(1, 2, 3)] * 9 + [()], most=99) == 3
    assert drafts.width([(1, 2, 3)] + [()] * 9, most=99) == 0
    assert drafts.width([(1, 2, 3)] * 9 + [()], most=2) == 2
    assert drafts.width([(1, 2, 3)] * 9 + [()], most=0) == 0
    assert drafts.width([(1, 2)] * 9 + [(1,) * 30], most=99) == 2  # one long guess would be padding for all others


def test_a_few_more_columns_are_cheaper_than_another_pass():
    drafts, guesses = Drafts(), [(1,) * 8] * 12 + [(1,) * 11]
    assert drafts.width(guesses, most=99) == 11
    assert drafts.width(guesses * 4, most=99) == 8
    drafts.record(offered=200, accepted=100)
    assert drafts.width([(1,) * 11], most=99) == 0


def test_guesses_that_fail_are_given_up_and_tried_again_after_successes():
    drafts, guesses = Drafts(), [(1, 2, 3, 4)] * 8
    assert drafts.width(guesses, most=99) == 4
    drafts.record(offered=200, accepted=10)
    assert drafts.share < 0.2
    assert drafts.width(guesses, most=99) == 0
    drafts.record(offered=200, accepted=200)
    assert drafts.width(guesses, most=99) == 4
