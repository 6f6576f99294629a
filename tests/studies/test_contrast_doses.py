import torch

from resect.directions import mean_of_differences
from resect.studies.contrast_doses import first_prompts, run_dose, share_doses, size_doses


def test_a_share_of_one_is_the_matched_mean_and_of_none_the_unmatched(desk, contrast_config):
    doses = share_doses(desk.materials, contrast_config(shares=[0.0, 0.5, 1.0]))
    ends = [mean_of_differences(desk.materials.harmful, desk.materials.baseline(b)).vectors for b in ("unmatched", "matched")]
    vectors = [recipe.directions.vectors for _, recipe in doses.values()]
    for found, expected in zip(vectors, (ends[0], (ends[0] + ends[1]) / 2, ends[1]), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [what["share"] for what, _ in doses.values()] == [0.0, 0.5, 1.0]


def test_a_smaller_dose_uses_the_first_prompts_with_as_many_benign_ones(desk):
    whole = desk.materials
    part = first_prompts(whole, 18)
    assert part.prompts == whole.prompts[:18]
    assert part.matched_count == len(part.benign) - part.matched_count == 18
    for i, prompt in enumerate(part.prompts):
        used = part.weights["matched"][i].nonzero().flatten().tolist()
        assert {part.benign_prompts[j].category for j in used} == {prompt.category}
        assert all(j < part.matched_count for j in used)
    expected = whole.benign[whole.matched_count : whole.matched_count + 18].mean(0)
    torch.testing.assert_close(part.baseline("unmatched").subtrahends[0], expected, atol=1e-5, rtol=1e-5)


def test_doses_that_the_prompts_do_not_allow_are_left_out(desk, contrast_config):
    assert set(size_doses(desk.materials, contrast_config(sizes=[18, 5000]))) == {"size_unmatched_18", "size_matched_18"}
    assert size_doses(desk.materials, contrast_config(sizes=[])) == {}


def test_a_dose_is_chosen_on_validation_and_scored_on_test(desk):
    recipe = share_doses(desk.materials, desk.config)["share_1"][1]
    found = run_dose(desk.screen, desk.examiner, recipe, [3])
    assert found["chosen"]["layers"] in ([3], list(range(6)))
    assert found["test"]["refusal_rate"]["n"] == 20
    assert found == run_dose(desk.screen, desk.examiner, recipe, [3])
