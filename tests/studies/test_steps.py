"""Finished steps: computed once, read back exactly, whole or not there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.cache import Cache, Key
from resect.errors import UserError
from resect.studies.steps import NotKept, Steps


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


def test_a_step_with_a_key_is_computed_once_for_all_folders(tmp_path):
    cache, told = Cache(tmp_path / "cache"), []
    one, two = (Key(letter * 64, "model") for letter in "ab")
    value, rows = {"b": (1, 2.5), "a": None}, {"rows": torch.randn(3, 2)}
    for folder, compute in (("first", lambda v: v), ("second", never_for)):
        steps = Steps(tmp_path / folder, told.append, cache)
        assert steps.json("one", lambda c=compute: c(value), key=one) == {"b": [1, 2.5], "a": None}
        assert torch.equal(steps.tensors("two", lambda c=compute: c(rows), key=two)["rows"], rows["rows"])
    assert told == ["one", "two"]
    assert steps.seconds == {}
    for name in ("steps/one.json", "activations/two.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def never_for(_value):
    return never()


def test_a_step_without_a_key_or_of_another_key_is_computed(tmp_path):
    cache = Cache(tmp_path / "cache")
    Steps(tmp_path / "first", cache=cache).json("one", lambda: 1, key=Key("a" * 64, "model"))
    assert Steps(tmp_path / "second", cache=cache).json("one", lambda: 2, key=Key("b" * 64, "model")) == 2
    assert Steps(tmp_path / "third", cache=cache).json("one", lambda: 3) == 3
    assert Steps(tmp_path / "fourth").json("one", lambda: 4, key=Key("a" * 64, "model")) == 4


def test_a_step_that_fails_is_not_kept(tmp_path):
    cache, key = Cache(tmp_path / "cache"), Key("a" * 64, "model")
    with pytest.raises(UserError, match=r"'rows'.* holds NaN"):
        Steps(tmp_path / "first", cache=cache).tensors("one", lambda: {"rows": torch.tensor([float("nan")])}, key=key)
    assert cache.find(key) is None


def test_one_who_only_looks_computes_nothing(tmp_path):
    steps, computed = Steps(tmp_path), []
    steps.json("there", lambda: computed.append("there") or 1)
    with steps.looking():
        assert steps.json("there", lambda: computed.append("again")) == 1
        with pytest.raises(NotKept, match="missing"):
            steps.json("missing", lambda: computed.append("missing"))
        with pytest.raises(NotKept, match="tensors"):
            steps.tensors("tensors", lambda: computed.append("tensors"))
    assert computed == ["there"]
    assert steps.json("missing", lambda: 2) == 2
