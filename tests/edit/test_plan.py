import re
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load, save

from resect.edit.algebra import apply_to_output
from resect.edit.plan import EditPlan, joined, make_plan, removal_plan
from resect.errors import UserError


@dataclass(frozen=True)
class Stub:
    name: str
    layer: int
    kind: str = "mlp"
    gain: torch.Tensor | None = None


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WRITERS = (Stub("a0", 0, "attention"), Stub("m0", 0), Stub("a1", 1, "attention"), Stub("m1", 1, gain=draw(8, seed=9)))
VECTORS = draw(2, 2, 8, seed=3) * 50


def test_directions_are_normalised_and_zero_strengths_left_out():
    plan = make_plan(WRITERS, VECTORS, torch.tensor([0.0, 0.7]))
    assert [(e.writer, round(e.gamma, 6)) for e in plan.edits] == [("a1", 0.7), ("m1", 0.7)]
    for edit in plan.edits:
        torch.testing.assert_close(edit.u.T @ edit.c, torch.eye(2), atol=1e-6, rtol=0)
    assert plan == make_plan(WRITERS, VECTORS * 1024, torch.tensor([0.0, 0.7]))
    assert make_plan(WRITERS, VECTORS, torch.zeros(2)) == EditPlan(())


@pytest.mark.parametrize("joint", [True, False])
def test_gain_moves_the_direction_to_the_writers_space(joint):
    edit = make_plan(WRITERS, VECTORS[:, :1], torch.ones(2), joint=joint).edits[-1]
    gain = WRITERS[3].gain
    y = draw(5, 8, seed=4)
    edited = apply_to_output(y, u=edit.u, c=edit.c, gamma=1.0)
    before, after = (gain * y) @ VECTORS[1, 0], (gain * edited) @ VECTORS[1, 0]
    assert float(after.abs().max()) < 1e-5 * float(before.abs().max())
    # Without the gain the residual keeps a part: the test would notice.
    plain = make_plan([replace(WRITERS[3], gain=None)], VECTORS[:, :1], torch.ones(2)).edits[0]
    leak = (gain * apply_to_output(y, u=plain.u, c=plain.c, gamma=1.0)) @ VECTORS[1, 0]
    assert float(leak.abs().max()) > 0.05 * float(before.abs().max())


def test_joint_removes_all_directions_and_sequential_keeps_some():
    y = draw(5, 8, seed=4)
    edits = {j: make_plan(WRITERS[:1], VECTORS, torch.ones(2), joint=j).edits[0] for j in (True, False)}
    left = {j: apply_to_output(y, u=e.u, c=e.c, gamma=1.0) @ torch.nn.functional.normalize(VECTORS[0], dim=1).T for j, e in edits.items()}
    assert float(left[True].abs().max()) < 1e-5
    assert float(left[False][:, 1].abs().max()) < 1e-5
    assert float(left[False][:, 0].abs().max()) > 1e-2


def test_strengths_per_kind():
    plan = make_plan(WRITERS, VECTORS, {"attention": torch.tensor([1.0, 0]), "mlp": torch.tensor([0, -2.0])})
    assert [(e.writer, e.gamma) for e in plan.edits] == [("a0", 1.0), ("m1", -2.0)]


def test_plan_survives_safetensors():
    plan = make_plan(WRITERS, VECTORS, torch.tensor([1.0, 0.3]), joint=False)
    tensors, description = plan.to_tensors()
    assert EditPlan.from_tensors(load(save(tensors)), description) == plan
    other = make_plan(WRITERS, VECTORS, torch.tensor([1.0, 0.31]), joint=False)
    assert plan != other
    assert plan != replace(plan, edits=(replace(plan.edits[0], u=plan.edits[0].u + 1e-6), *plan.edits[1:]))
    assert len({plan, EditPlan.from_tensors(tensors, description), other}) == 2


@pytest.mark.parametrize(("value", "what"), [(0.0, "zero"), (float("nan"), "not finite"), (float("inf"), "not finite")])
def test_bad_directions_name_the_layer(value, what):
    vectors = VECTORS.clone()
    vectors[1, 1] = value
    with pytest.raises(UserError, match=f"Direction 1 of layer 1 is {what}"):
        make_plan(WRITERS, vectors, torch.ones(2))
    assert len(make_plan(WRITERS, vectors, torch.tensor([1.0, 0])).edits) == 2


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        (torch.ones(3), "strengths for 3 layers and directions for 2"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        ({"mlp": torch.ones(2)}, "writers of kind attention"),
    ],
)
def test_bad_strengths(strengths, message):
    with pytest.raises(UserError, match=message):
        make_plan(WRITERS, VECTORS, strengths)


def test_writer_without_directions():
    with pytest.raises(UserError, match="Writer far is at layer 2, but there are directions for layers 0 to 1 only"):
        make_plan([Stub("far", 2)], VECTORS, torch.ones(2))


def test_a_writer_has_one_edit():
    edits = make_plan(WRITERS, VECTORS, torch.ones(2)).edits
    with pytest.raises(UserError, match="names writer a0 twice"):
        EditPlan((*edits, edits[0]))


def test_damaged_files():
    tensors, description = make_plan(WRITERS, VECTORS, torch.ones(2)).to_tensors()
    with pytest.raises(UserError, match=re.escape("format 'resect.edit/2' or 'resect.edit/1', found None")):
        EditPlan.from_tensors(tensors, {})
    with pytest.raises(UserError, match=r"lacks the tensor a0\.u"):
        EditPlan.from_tensors({k: v for k, v in tensors.items() if k != "a0.u"}, description)
    with pytest.raises(UserError, match="writer a0 have shapes"):
        EditPlan.from_tensors(tensors | {"a0.u": torch.ones(8, 3)}, description)
    with pytest.raises(UserError, match="writer m1 hold NaN"):
        EditPlan.from_tensors(tensors | {"m1.c": torch.full((8, 2), float("nan"))}, description)


@pytest.mark.parametrize("entry", [{}, 1, {"writer": "a"}, {"writer": 3, "gamma": 1.0}, {"writer": "a", "gamma": float("nan")}])
def test_a_damaged_entry_is_one_sentence(entry):
    with pytest.raises(UserError, match="needs a writer's name and a finite gamma"):
        EditPlan.from_tensors({}, {"format": "resect.edit/1", "edits": [entry]})


def test_kept_norms_survive_the_file_and_older_files_are_read():
    plan = make_plan(WRITERS, VECTORS, torch.ones(2), preserve="column")
    tensors, description = plan.to_tensors()
    assert description["format"] == "resect.edit/2"
    assert EditPlan.from_tensors(tensors, description) == plan
    assert plan != make_plan(WRITERS, VECTORS, torch.ones(2))
    older = {"format": "resect.edit/1", "edits": [{"writer": e["writer"], "gamma": e["gamma"]} for e in description["edits"]]}
    assert EditPlan.from_tensors(tensors, older) == make_plan(WRITERS, VECTORS, torch.ones(2))
    description["edits"][0]["preserve"] = "rows"
    with pytest.raises(UserError, match="Unknown kind of norm preservation 'rows'; did you mean 'row'"):
        EditPlan.from_tensors(tensors, description)


def test_the_same_directions_for_any_writers_and_plans_put_together():
    ahead = (Stub("table", -1, "embedding"),)
    plan = joined(make_plan(WRITERS, VECTORS, torch.ones(2)), removal_plan(ahead, VECTORS[1], 0.5))
    assert [(e.writer, e.gamma) for e in plan.edits][-2:] == [("m1", 1.0), ("table", 0.5)]
    assert torch.equal(plan.edits[-1].u, make_plan(WRITERS[2:3], VECTORS, torch.ones(2)).edits[0].u)
    assert removal_plan(ahead, VECTORS[1], 0.0) == EditPlan(())
    with pytest.raises(UserError, match="names writer table twice"):
        joined(removal_plan(ahead, VECTORS[0], 1.0), removal_plan(ahead, VECTORS[1], 1.0))
    with pytest.raises(UserError, match="Direction 0 is zero and cannot be removed from table; set the strength of the embeddings to 0"):
        removal_plan(ahead, torch.zeros(1, 8), 1.0)
