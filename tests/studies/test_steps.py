"""Finished steps: computed once, read back exactly, whole or not there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.errors import UserError
from resect.studies.steps import Steps


def never():
    raise AssertionError("computed again")


@given(value=st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans() | st.none(), st.lists, max_leaves=8))
def test_a_json_step_comes_back_exactly(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("steps")
    first = Steps(folder).json("one", lambda: value)
    assert first == value
    assert Steps(folder).json("one", never) == value


def test_a_tensor_step_comes_back_exactly(tmp_path):
    value = {"rows": torch.randn(3, 2, 4), "ids": torch.arange(5)}
    Steps(tmp_path).tensors("two", lambda: value)
    found = Steps(tmp_path).tensors("two", never)
    assert all(torch.equal(found[name], value[name]) for name in value)


def test_a_step_that_fails_or_is_cut_short_is_computed_again(tmp_path):
    with pytest.raises(AssertionError):
        Steps(tmp_path).json("one", never)
    with pytest.raises(UserError, match=r"'rows'.* holds NaN or infinity in 1 of 2 values"):
        Steps(tmp_path).tensors("two", lambda: {"rows": torch.tensor([1.0, float("nan")])})
    (tmp_path / "steps").mkdir(exist_ok=True)
    (tmp_path / "steps" / ".one.json.99.tmp").write_text("[1, 2")
    assert Steps(tmp_path).json("one", lambda: [3]) == [3]
    assert Steps(tmp_path).tensors("two", lambda: {"rows": torch.ones(2)})["rows"].sum() == 2


def test_only_computed_steps_are_announced_and_timed(tmp_path):
    told = []
    steps = Steps(tmp_path, told.append)
    steps.json("one", lambda: 1)
    steps.json("one", never)
    again = Steps(tmp_path)
    again.json("one", never)
    assert told == ["one"]
    assert set(steps.seconds) == {"one"}
    assert again.seconds == {}
