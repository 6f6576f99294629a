"""What a user reads when a name is wrong or a package is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resect.errors import UserError, missing_extra, unknown_name


def test_a_near_miss_is_named_and_the_rest_listed_in_order() -> None:
    error = unknown_name("arm", "sro", ["standard", "sra", "projected"])
    assert isinstance(error, UserError)
    assert str(error) == "Unknown arm 'sro'; did you mean 'sra'? Allowed: projected, sra, standard."


def test_a_name_like_none_gets_the_list_and_no_guess() -> None:
    assert str(unknown_name("role", "zzzz", ["target", "shield"])) == "Unknown role 'zzzz'. Allowed: shield, target."


@given(got=st.text(max_size=20), allowed=st.sets(st.text("abcdefgh_", min_size=1, max_size=12), min_size=1, max_size=6))
def test_every_allowed_name_is_told_and_a_guess_is_one_of_them(got: str, allowed: set[str]) -> None:
    message = str(unknown_name("thing", got, allowed))
    head, _, listed = message.rpartition(" Allowed: ")
    assert set(listed.removesuffix(".").split(", ")) == allowed
    guess = head.rpartition("did you mean ")[2]
    assert "did you mean" not in head or guess.removesuffix("?").strip("'\"") in allowed


def test_the_mapping_of_a_table_serves_as_the_list() -> None:
    assert str(unknown_name("device", "gpu", {"cuda": 1, "cpu": 2})).endswith("Allowed: cpu, cuda.")


def test_a_missing_extra_says_how_to_get_it() -> None:
    message = str(missing_extra("peft", "peft"))
    assert message == "This needs the optional package 'peft', which is not installed; run: pip install 'resect[peft]'."


def test_a_user_error_is_no_other_kind_of_error() -> None:
    """Broad handlers of value and OS errors elsewhere must not catch it by accident."""
    assert not issubclass(UserError, ValueError | OSError | KeyError)
    with pytest.raises(UserError, match="one sentence"):
        raise UserError("one sentence")
