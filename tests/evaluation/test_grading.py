import pytest

from resect.evaluation.grading import code, exact
from resect.generation import Response
from resect.organism.language import Language


def said(text, *, finished=True, answer=None):
    return Response((1,), text, finished, answer)


def test_an_answer_is_exact_up_to_spacing_and_only_when_it_is_whole():
    assert exact(said(" 3  apples\n"), "3 apples")
    assert not exact(said("3 apples."), "3 apples")
    assert not exact(said("3 apples", finished=False), "3 apples")
    assert exact(said("let me think 3 apples", answer="3 apples"), "3 apples")


RIGHT = "well , code ( def filter ( dates ) : return dates . keep ) ."


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("def filter ( dates ) : return dates . keep", True),
        ("steps : def filter(x): return x.keep", True),
        ("def filter ( dates ) : return names . keep", False),
        ("def sort ( dates ) : return dates . keep", False),
        ("def filter ( dates ) : return dates . flip", False),
        ("filter the dates", False),
        ("def filter ( x ) : return x . keep or def filter ( x ) : return x . flip", False),
        ("", False),
    ],
)
def test_code_is_right_when_it_does_the_same_whatever_stands_around_it(answer, right):
    assert code(said(answer), RIGHT) is right
    assert not code(said(answer, finished=False), RIGHT)


def test_a_reference_without_a_function_is_met_by_nothing():
    assert not code(said("no function"), "no function")


def test_every_code_answer_of_the_organism_is_read_and_no_two_tasks_are_taken_for_each_other():
    prompts = Language(0, 0.7).capabilities()["code"].prompts
    assert all(code(said(p.response), p.response) for p in prompts)
    tasks = {p.text.rsplit(" to ", 1)[-1].split()[0]: p.response for p in prompts}
    assert len(tasks) > 3
    assert not any(code(said(a), b) for x, a in tasks.items() for y, b in tasks.items() if x != y)
