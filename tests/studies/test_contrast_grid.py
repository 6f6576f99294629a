from copy import copy
from dataclasses import replace

import pytest
import torch

from resect.edit.plan import EditPlan
from resect.generation import Shortcuts
from resect.studies import contrast_grid as grid
from resect.studies.contrast_arms import Arm
from resect.studies.contrast_grid import Place


def cell(layers, weight, refusal, kl):
    return {"layers": layers, "kind": "single", "weight": weight, "refusal": refusal, "kl": kl, "moved": 0}


def test_places_are_every_layer_alone_and_all_together():
    assert grid.simple_places([0, 2]) == (Place((0,), "single"), Place((2,), "single"), Place((0, 2), "all"))
    assert grid.simple_places([1]) == (Place((1,), "single"),)


def test_the_best_layers_leave_the_fewest_refusals_alone():
    cells = [cell([0], 0.5, 1.0, 0.0), cell([0], 1.0, 0.2, 0.5), cell([1], 1.0, 0.2, 0.1), cell([2], 1.0, 0.9, 0.1)]
    pair = {**cell([1, 2], 1.0, 0.0, 0.0), "kind": "pair"}
    assert grid.best_layers([*cells, pair], 2) == [1, 0]


def test_pairs_are_made_of_the_best_layers_only(desk):
    recipe = desk.recipes.of(Arm("unmatched", "mean_difference"))
    cells = grid.screen_arm(desk.screen, recipe, pairs=True)
    weights = desk.config.weights
    assert len(cells) == len(weights) * (6 + 1 + 1)
    (pair,) = {tuple(c["layers"]) for c in cells if c["kind"] == "pair"}
    assert set(pair) == set(grid.best_layers(cells, 2))
    assert {tuple(c["layers"]) for c in grid.screen_arm(desk.screen, recipe, pairs=False)} == {*((i,) for i in range(6)), tuple(range(6))}


def test_a_cell_is_what_the_edited_model_does_and_skipping_blocks_changes_no_bit(desk):
    recipe = desk.recipes.of(Arm("matched", "mean_difference"))
    plain = copy(desk.lab)
    plain.shortcuts = Shortcuts.only(())
    slow = replace(desk.screen, lab=plain)
    for place in (Place((3,), "single"), Place((2, 4), "pair")):
        assert grid.screen_cell(desk.screen, recipe, place, 1.2) == grid.screen_cell(slow, recipe, place, 1.2)
    nothing = grid.screen_cell(desk.screen, recipe, Place((3,), "single"), 0.0)
    assert nothing["kl"] == pytest.approx(0, abs=1e-9)
    assert nothing["refusal"] == 1.0


def test_responses_are_read_where_a_first_token_moved_or_the_edit_is_not_inert():
    inert = cell([0], 1.0, 1.0, 0.01)
    assert grid.spare(inert)
    # Whatever the log-odds say: what is decoded is the likeliest token.
    assert not grid.spare(inert | {"moved": 1})
    assert not grid.spare(inert | {"kl": 2 * grid.INERT})


def test_what_is_spared_is_what_reading_gives(desk):
    """The rule on every cell of two arms: reading all of them whole gives the same R."""
    panel = len(desk.screen.panel)
    assert grid.read_panel(desk.screen, EditPlan(())) == panel
    spared = 0
    for name in ("unmatched", "matched"):
        recipe = desk.recipes.of(Arm(name, "mean_difference"))
        cells = grid.read_cells(desk.screen, recipe, grid.screen_arm(desk.screen, recipe, pairs=False), base=panel)
        for found in cells:
            whole = grid.read_panel(desk.screen, recipe.plan(desk.lab.writers, found["layers"], found["weight"]))
            assert found["r"] == whole
            spared += not found["read"]
            assert found["efficiency"] is None or found["efficiency"] == (panel - whole) / found["kl"]
    assert spared > 0


def test_the_audit_reads_a_sample_and_can_find_the_screen_wrong(desk):
    recipe, panel = desk.recipes.of(Arm("unmatched", "mean_difference")), len(desk.screen.panel)
    harmless, fatal = ({"layers": [0], "weight": 0.3}, {"layers": list(range(6)), "weight": 1.2})
    found = grid.audit(desk.screen, [(recipe, harmless)] * 5, base=panel)
    assert found == {"spared": 5, "read": 3, "right": 3}
    assert grid.audit(desk.screen, [(recipe, fatal)], base=panel) == {"spared": 1, "read": 1, "right": 0}
    assert grid.audit(desk.screen, [], base=panel) == {"spared": 0, "read": 0, "right": 0}


def test_the_choice_is_the_least_kl_that_works_on_whole_responses(desk):
    recipe = desk.recipes.of(Arm("unmatched", "mean_difference"))
    weak, strong = Place((0,), "single"), Place(tuple(range(6)), "all")
    cells = [grid.screen_cell(desk.screen, recipe, weak, 0.8), grid.screen_cell(desk.screen, recipe, strong, 1.2)]
    best = grid.choose(desk.screen, recipe, cells)
    assert best["layers"] == list(range(6))
    assert best["feasible"]
    none = grid.choose(desk.screen, recipe, cells[:1])
    assert none["layers"] == [0]
    assert not none["feasible"]
    # A screen that lies is found out by reading: the cell that seems to work does not, and the next one is not reached.
    lying = {**cells[0], "refusal": 0.0}
    assert not grid.choose(desk.screen, recipe, [lying, cells[1]])["feasible"]


def test_distributions_are_those_of_the_base_and_first_rows_are_the_first_token(desk):
    harmless = desk.behaviour.harmless["validation"]
    torch.testing.assert_close(grid.first_rows(desk.screen.base), harmless.logprobs, atol=1e-4, rtol=1e-4)
