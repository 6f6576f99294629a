from dataclasses import replace

import pytest
import torch

from resect.directions import METHODS, mean_of_differences
from resect.directions.som import Grid, som
from resect.edit.algebra import apply_to_output
from resect.errors import UserError
from resect.studies.contrast_arms import CORE, Arm, Recipes, arms, map_grid, norm_scales, reference_norm, shifted


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_every_arm_is_named_once_and_controls_stand_last(contrast_config):
    found = arms(contrast_config(), paired=True)
    assert len({a.name for a in found}) == len(found)
    plain = [a for a in found if not a.control]
    assert {(a.baseline, a.method) for a in plain} == {(b, m) for b in CORE for m in ("mean_difference", "class_means")}
    assert found[: len(plain)] == tuple(plain)
    for name in ("raw_norm", "projected", "topic_free"):
        assert {a.plain for a in found if a.variant == name} == set(plain)
    assert {a.plain for a in found if a.variant == "sequential"} == {a for a in plain if METHODS[a.method].several}
    assert [a.name for a in found if a.variant == "fewer"] == ["unmatched/class_means/fewer"]
    assert {"unmatched/random", "unmatched/random_classes", "dealt/class_means", "other_topics/mean_difference"} <= {a.name for a in found}


def test_without_pairs_nothing_is_paired_and_without_variants_all_is_plain(contrast_config):
    found = arms(contrast_config(variants=[]), paired=False)
    assert {a.baseline for a in found} == {"unmatched", "matched", "other_topics", "dealt"}
    assert {a.variant for a in found} == {"plain"}


@pytest.mark.parametrize("name", ["som_svt", "random"])
def test_an_unknown_method_or_a_control_is_no_method(contrast_config, name):
    with pytest.raises(UserError, match=f"Unknown method '{name}'"):
        arms(contrast_config(methods=[name]), paired=True)


def test_raw_norms_scale_an_edit_and_the_reference_is_removed_whole(desk):
    raw = desk.recipes.of(Arm("matched", "mean_difference", "raw_norm"))
    expected = (raw.directions.vectors[:, 0].norm(dim=-1) / reference_norm(desk.materials)) ** 2
    torch.testing.assert_close(raw.scales[:, 0], expected)
    own = desk.recipes.of(Arm("unmatched", "mean_difference", "raw_norm"))
    torch.testing.assert_close(own.scales, torch.ones_like(own.scales))
    plan = raw.plan(desk.lab.writers, [2], 0.8)
    assert {e.writer for e in plan.edits} == {w.name for w in desk.lab.writers if w.layer == 2}
    y, unit = torch.randn(5, raw.directions.vectors.shape[2]), raw.directions.unit[2, 0]
    edited = apply_to_output(y, u=plan.edits[0].u, c=plan.edits[0].c, gamma=plan.edits[0].gamma)
    torch.testing.assert_close(edited @ unit, (1 - 0.8 * expected[2]) * (y @ unit), atol=1e-4, rtol=1e-4)


def test_half_the_norm_is_a_quarter_of_the_edit(desk):
    found = mean_of_differences(desk.materials.harmful, desk.materials.baseline("unmatched"))
    reference = reference_norm(desk.materials)
    small = norm_scales(replace(found, vectors=found.vectors / 2), reference)
    torch.testing.assert_close(small, torch.full_like(small, 0.25))


def test_variants_take_out_what_they_say_and_nothing_else(desk):
    materials = desk.materials
    for arm in (Arm(b, m) for b in ("unmatched", "matched") for m in ("mean_difference", "class_means")):
        plain = desk.recipes.of(arm).directions.vectors
        mean = materials.baseline(arm.baseline).subtrahends.mean(0)
        projected = desk.recipes.of(replace(arm, variant="projected")).directions.vectors
        assert cosines(projected, mean[:, None]).abs().max() < 1e-4
        gone = plain - projected
        large = gone.norm(dim=-1) > 1e-3 * plain.norm(dim=-1)
        assert cosines(gone, mean[:, None]).abs()[large].min() > 0.999
        free = desk.recipes.of(replace(arm, variant="topic_free")).directions.vectors
        assert torch.einsum("lkd,lcd->lkc", free, torch.nn.functional.normalize(materials.topic_means, dim=-1)).abs().max() < 1e-3


def test_without_topics_the_two_baselines_are_one(desk):
    """The difference of the two is a sum of topic means, so outside their span they agree."""
    found = [desk.recipes.of(Arm(b, "mean_difference", "topic_free")).directions.vectors for b in ("unmatched", "matched")]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


def test_fewer_keeps_seven_ninths_of_the_directions(desk):
    whole, fewer = (desk.recipes.of(Arm("unmatched", "class_means", v)).directions for v in ("plain", "fewer"))
    assert fewer.vectors.shape[1] == round(7 / 9 * whole.vectors.shape[1]) == 5


def test_removal_one_after_another_leaves_what_joint_removal_takes(desk):
    recipes = [desk.recipes.of(Arm("matched", "class_means", variant)) for variant in ("plain", "sequential")]
    edits = [recipe.plan(desk.lab.writers, [3], 1.0).edits[0] for recipe in recipes]
    y, units = torch.randn(4, 128), recipes[0].directions.unit[3]
    joint, sequential = (apply_to_output(y, u=edit.u, c=edit.c, gamma=1.0) @ units.T for edit in edits)
    assert joint.abs().max() < 1e-4
    assert sequential[:, 0].abs().max() > 1e-2
    assert sequential[:, -1].abs().max() < 1e-4


def test_maps_of_another_baseline_are_the_same_maps_moved(desk):
    materials, grid = desk.materials, Grid(rows=1, columns=2, iterations=50)
    old, new = materials.baseline("matched"), materials.baseline("unmatched")
    trained = som(materials.harmful[:, :2], replace_rows(old), labels=materials.labels, grid=grid)
    moved = shifted(trained, replace_rows(old), replace_rows(new), materials.labels)
    again = som(materials.harmful[:, :2], replace_rows(new), labels=materials.labels, grid=grid)
    torch.testing.assert_close(moved.vectors, again.vectors, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(trained.vectors, again.vectors, atol=1e-2)


SMALL_MAP = {"methods": ["som", "som_svd"], "som_rows": 1, "som_columns": 2, "som_iterations": 60}


@pytest.mark.parametrize("changes", [{"som_winners": 2}, {"som_read": "members", "som_training": "batch"}, {"directions": 3}])
def test_maps_are_trained_as_the_settings_say_and_moved_for_every_baseline(desk, contrast_config, changes):
    config = contrast_config(**SMALL_MAP, **changes)
    two = {name: getattr(desk.materials, name)[:, :2] for name in ("harmful", "benign", "held_out")}
    materials = replace(desk.materials, **two)
    made, grid = Recipes(materials, config), map_grid(config)
    for name in ("matched", "unmatched", "paired"):
        baseline = materials.baseline(name)
        direct = som(materials.harmful, baseline, labels=materials.labels, seed=config.seed, grid=grid)
        expected = direct.first(config.directions) if config.directions else direct
        found = made.of(Arm(name, "som")).directions
        torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-4, rtol=1e-4)
    assert made.of(Arm("matched", "som_svd")).directions.vectors.shape[1] == (config.directions or 6 * config.som_winners)


def test_more_winners_than_neurons_with_prompts_and_more_directions_than_there_are_are_refused(desk, contrast_config):
    flat = replace(desk.materials, harmful=desk.materials.harmful.mean(0).expand(len(desk.materials.harmful), -1, -1))
    with pytest.raises(UserError, match="Only 1 neurons of a map win prompts, and 2 winners a class were asked for"):
        Recipes(flat, contrast_config(**SMALL_MAP, som_winners=2)).of(Arm("matched", "som"))
    with pytest.raises(UserError, match="7 directions a layer were asked for, and method 'class_means' found 6"):
        Recipes(desk.materials, contrast_config(directions=7)).of(Arm("matched", "class_means"))


def test_an_arm_without_any_direction_is_refused(desk):
    materials = desk.materials
    none = replace(materials, harmful=materials.baseline("matched").subtrahends)
    with pytest.raises(UserError, match="Every layer of matched/class_means has a direction of length zero"):
        Recipes(none, desk.config).of(Arm("matched", "class_means"))


def replace_rows(baseline):
    return replace(baseline, rows=baseline.rows[:, :2])


def test_a_layer_with_a_direction_that_is_zero_is_not_edited(desk):
    recipe = desk.recipes.of(Arm("matched", "mean_difference"))
    vectors = recipe.directions.vectors.clone()
    vectors[1] = 0
    assert replace(recipe, directions=replace(recipe.directions, vectors=vectors)).usable == (0, 2, 3, 4, 5)


def test_oblique_methods_are_edited_with_both_their_sides(desk):
    for method, count in (("leace", 1), ("leace_classes", 6)):
        recipe = desk.recipes.of(Arm("matched", method))
        (edit, _) = recipe.plan(desk.lab.writers, [1], 1.0).edits
        assert edit.u.shape == edit.c.shape == (128, count)
        assert not torch.allclose(edit.u, edit.c)
        torch.testing.assert_close(edit.c.T @ edit.u, torch.eye(count), atol=1e-3, rtol=0)
