"""Echoes: learnt from the model's own refusals, never from its answers."""

from resect.evaluation.echo import learn_echo
from resect.generation import Response


def said(*ids: int) -> Response:
    return Response(ids, "", finished=True)


REFUSALS = [said(1, 2, 3, 4, 5, 9), said(7, 2, 3, 4, 5, 9), said(1, 2, 3, 4, 5, 8)]
ANSWERS = [said(20, 21, 22, 23, 24), said(20, 1, 2, 30, 31)]
VERDICTS = ("refuse",) * 3 + ("comply",) * 2


def test_a_covert_refusal_is_heard_and_an_answer_is_not() -> None:
    echo = learn_echo([*REFUSALS, *ANSWERS], VERDICTS)
    assert echo.heard_in(said(40, 41, 2, 3, 4, 5))
    assert not any(echo.heard_in(answer) for answer in ANSWERS)
    assert not echo.heard_in(said(1, 2, 3, 50, 51))


def test_runs_that_answers_share_are_not_learnt() -> None:
    shared = said(50, 2, 3, 4, 5)
    echo = learn_echo([*REFUSALS, shared], ("refuse",) * 3 + ("comply",))
    assert not echo.heard_in(shared)


def test_a_single_refusal_teaches_nothing() -> None:
    assert learn_echo(REFUSALS[:1], ("refuse",)).runs == frozenset()


def test_short_responses_have_no_runs() -> None:
    assert not learn_echo([*REFUSALS, *ANSWERS], VERDICTS).heard_in(said(2, 3))
