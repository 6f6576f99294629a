from dataclasses import astuple, fields

import pytest

from resect.config import SRAConfig
from resect.config.base import SHORTCUTS, UNMEASURED
from resect.errors import UserError
from resect.generation import NONE, Shortcuts


def test_named_ones_are_on_and_no_others():
    assert not any(astuple(NONE))
    assert Shortcuts.only(["drafts"]) == Shortcuts(
        retire=False, stop=False, drafts=True, memory=False, rows=False, lower_layers=False, prefix=False
    )
    assert Shortcuts.only(["drafts"]).drafts
    with pytest.raises(UserError, match=r"[Uu]nknown shortcut 'draft'.*drafts"):
        Shortcuts.only(["draft"])


def test_settings_know_the_same_names_and_take_the_same_by_default():
    assert sorted(f.name for f in fields(Shortcuts)) == sorted(SHORTCUTS + UNMEASURED)
    assert Shortcuts() == Shortcuts.only(SHORTCUTS) == Shortcuts.only(SRAConfig().shortcuts)
    assert not any(getattr(Shortcuts(), name) for name in UNMEASURED)
    assert SRAConfig(shortcuts=[*SHORTCUTS, *UNMEASURED]).shortcuts == SHORTCUTS + UNMEASURED
    with pytest.raises(UserError, match=r"[Uu]nknown shortcut 'statik'.*static_cache"):
        SRAConfig(shortcuts=["statik"])
