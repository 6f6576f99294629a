"""Oblique edits: the removed part is gone, what the read direction does not see is untouched."""

from dataclasses import dataclass

import pytest
import torch

from resect.edit.oblique import oblique_plan
from resect.errors import UserError


@dataclass(frozen=True)
class Stub:
    name: str
    layer: int
    kind: str = "mlp"
    gain: torch.Tensor | None = None


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_removed_direction_vanishes_and_unseen_output_stays() -> None:
    removed, read = rows(0, 2, 8), rows(1, 2, 8)
    plan = oblique_plan([Stub("a", 1)], removed, read, torch.ones(2))
    edit = plan.edits[0]
    gone = removed[1] - edit.gamma * edit.u @ (edit.c.T @ removed[1])
    assert gone.norm() < 1e-5 * removed[1].norm()
    unseen = rows(2, 8)
    unseen = unseen - read[1] * (unseen @ read[1]) / read[1].square().sum()
    torch.testing.assert_close(unseen - edit.u @ (edit.c.T @ unseen), unseen, rtol=1e-4, atol=1e-5)


def test_gain_moves_the_edit_into_the_writers_space() -> None:
    removed, read, gain, y = rows(0, 1, 8), rows(1, 1, 8), rows(2, 8).abs() + 0.5, rows(3, 8)
    plain = oblique_plan([Stub("a", 0)], removed, read, torch.ones(1)).edits[0]
    behind = oblique_plan([Stub("a", 0, gain=gain)], removed, read, torch.ones(1)).edits[0]
    after_norm = gain * y - plain.u @ (plain.c.T @ (gain * y))
    torch.testing.assert_close(gain * (y - behind.u @ (behind.c.T @ y)), after_norm, rtol=1e-4, atol=1e-5)


def test_strength_zero_has_no_entry() -> None:
    assert oblique_plan([Stub("a", 0)], rows(0, 1, 4), rows(1, 1, 4), torch.zeros(1)).edits == ()


def test_a_blind_read_direction_is_refused() -> None:
    removed, read = torch.eye(4)[:1], torch.eye(4)[1:2]
    with pytest.raises(UserError, match="does not see the one to be removed"):
        oblique_plan([Stub("a", 0)], removed, read, torch.ones(1))


@pytest.mark.parametrize("bad", ["removed", "read", "strengths"])
def test_what_is_not_finite_is_refused(bad) -> None:
    given = {"removed": rows(0, 1, 8), "read": rows(1, 1, 8), "strengths": torch.ones(1)}
    given[bad].view(-1)[0] = torch.nan
    with pytest.raises(UserError, match="layer 0 is NaN or infinite"):
        oblique_plan([Stub("a", 0)], **given)


def test_several_directions_vanish_together_and_one_is_the_same_either_way() -> None:
    removed, read = rows(0, 1, 3, 8), rows(1, 1, 3, 8)
    edit = oblique_plan([Stub("a", 0)], removed, read, torch.ones(1)).edits[0]
    torch.testing.assert_close(edit.c.T @ edit.u, torch.eye(3), rtol=0, atol=1e-5)
    assert (removed[0].T - edit.u @ (edit.c.T @ removed[0].T)).norm() < 1e-5 * removed.norm()
    unseen = rows(2, 8)
    unseen = unseen - torch.linalg.pinv(read[0]) @ (read[0] @ unseen)
    torch.testing.assert_close(edit.u @ (edit.c.T @ unseen), torch.zeros(8), rtol=0, atol=1e-4)
    one = oblique_plan([Stub("a", 0)], removed[:, 0], read[:, 0], torch.ones(1))
    assert one == oblique_plan([Stub("a", 0)], removed[:, :1], read[:, :1], torch.ones(1))
    with pytest.raises(UserError, match="does not see the one to be removed"):
        oblique_plan([Stub("a", 0)], removed, read[:, [0, 1, 1]], torch.ones(1))
