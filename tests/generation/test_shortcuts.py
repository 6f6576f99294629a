from dataclasses import astuple

import pytest

from resect.errors import UserError
from resect.generation import NONE, Shortcuts


def test_named_ones_are_on_and_no_others():
    assert not any(astuple(NONE))
    assert all(astuple(Shortcuts()))
    assert Shortcuts.only(["drafts"]) == Shortcuts(retire=False, stop=False, drafts=True, memory=False, rows=False, lower_layers=False)
    assert Shortcuts.only(["drafts"]).drafts
    with pytest.raises(UserError, match=r"[Uu]nknown shortcut 'draft'.*drafts"):
        Shortcuts.only(["draft"])
