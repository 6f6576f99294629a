"""Digests: equal for equal values, different for anything else, and refused where no rule says."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resect.digests import digest, tensor_digest

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Named:
    name: str
    ids: tuple[int, ...] = ()
    note: str = field(default="", compare=False)


@given(a=plain, b=plain)
def test_two_values_share_a_digest_only_if_json_writes_them_alike(a, b):
    assert (digest(a) == digest(b)) == (json.dumps(a) == json.dumps(b))


@given(value=plain)
def test_a_value_keeps_its_digest_through_json(value):
    assert digest(json.loads(json.dumps(value))) == digest(value)


def test_look_alikes_differ():
    values = [0, 0.0, -0.0, False, "0", b"0", None, "None", [], {}, "", [[]], [0], [0.0], [[0]], {"a": 0}, ["a", 0], ["a0"], {0}]
    values += [["ab", "c"], ["a", "bc"], [["a"], "b"], [["a", "b"]], ["a\0", "b"], ["a", "\0b"], "[0]", Named("0"), Named("0", (1,))]
    assert len({digest(v) for v in values}) == len(values)


def test_order_counts_but_in_sets():
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest((1, 2)) == digest([1, 2])
    assert digest(frozenset(range(50))) == digest(frozenset(reversed(range(50))))


def test_every_bit_dtype_and_shape_of_a_tensor_counts_and_its_layout_does_not():
    rows = torch.randn(3, 4)
    changed = rows.clone()
    changed.view(torch.uint8)[2, 13] ^= 1
    others = [changed, rows.reshape(4, 3), rows.view(torch.int32), rows.to(torch.bfloat16), rows[:2], torch.zeros(0, 4), torch.zeros(0)]
    assert len({tensor_digest(t) for t in [rows, *others]}) == len(others) + 1
    assert tensor_digest(rows.T.contiguous().T) == tensor_digest(rows)
    assert digest({"rows": rows}) != digest({"rows": changed})
    assert digest(torch.tensor(1.0)) != digest(torch.tensor([1.0]))


def test_fields_that_are_not_compared_are_no_part_of_a_value():
    assert digest(Named("a", note="x")) == digest(Named("a", note="y"))
    assert digest(Named("a")) != digest(Named("b"))


def test_a_stand_in_takes_the_place_of_a_type_wherever_it_is():
    special = {Named: lambda n: n.ids}
    assert digest([{"k": Named("a", (1, 2))}], special) == digest([{"k": Named("b", (1, 2))}], special)
    assert digest(Named("a", (1, 2)), special) != digest(Named("a", (2, 1)), special)
    assert digest(Named("a", (1, 2)), special) != digest((1, 2), special)


@pytest.mark.parametrize("value", [Path("a"), object(), len, Named, 1j, [Path("a")], {"a": {"b": Path("a")}}])
def test_what_has_no_rule_is_refused(value):
    with pytest.raises(TypeError, match="no rule for the digest of"):
        digest(value)


def test_a_memo_remembers_what_is_equal_to_itself_alone():
    @dataclass(frozen=True, eq=False)
    class Row:
        ids: tuple[int, ...]

    @dataclass(frozen=True)
    class Pair:
        first: Row
        second: Row

    memo, row = WeakKeyDictionary(), Row((1, 2))
    again = Row((1, 2))
    plain = digest(Pair(row, again))
    assert digest(Pair(row, again), memo=memo) == plain
    assert set(memo) == {row, again}  # not the pair, another of which could be equal to it
    assert digest(Pair(row, Row((1, 3))), memo=memo) != plain
    memo[row] = "remembered"
    assert digest(row, memo=memo) == "remembered"
    assert digest([again, row], memo=memo) != digest([again, row])
