"""The study as a whole: what it writes, and that its parts agree with one another."""

import pytest
import torch

from resect.artifacts import dump_json
from resect.models.load import fingerprint
from resect.studies import scores, sra
from resect.studies.steps import Steps

M = {"value", "low", "high", "n", "unit"}


def test_the_evaluation_holds_every_arm_with_every_measure(result, inputs):
    evaluation = result.evaluation
    assert list(evaluation["arms"]) == ["base", "standard", "projected", "sra"]
    for arm in evaluation["arms"].values():
        assert set(arm) == {"refusal_rate", "benign_refusal_rate", "kl_first_token", "kl_tokens", "perplexity", "recovery"}
        assert set(arm["perplexity"]) == {*inputs.questions, scores.TEXT}
        for measure in (*(v for k, v in arm.items() if k != "perplexity"), *arm["perplexity"].values()):
            assert set(measure) >= M
            assert measure["low"] <= measure["value"] <= measure["high"]
    base = evaluation["arms"]["base"]
    assert base["kl_tokens"]["value"] == pytest.approx(0, abs=1e-9)
    assert base["refusal_rate"]["value"] > 0.8 > evaluation["arms"]["sra"]["refusal_rate"]["value"]
    dump_json(evaluation)


def test_the_arms_are_compared_in_pairs_with_corrected_p(result):
    rows = result.evaluation["comparisons"]
    assert {(r["a"], r["b"]) for r in rows} == {("standard", "projected"), ("standard", "sra"), ("projected", "sra")}
    assert all(0 <= r["p"] <= r["p_holm"] <= 1 for r in rows)


def test_the_study_describes_each_arm_and_reads_all_at_one_refusal(result):
    study = result.study
    dump_json(study)
    assert set(study["arms"]) == {"standard", "projected", "sra"}
    for arm in study["arms"].values():
        assert max(arm["profile"]) == pytest.approx(arm["strength"], rel=1e-5)
        assert arm["candidates"] > 0
    assert study["arms"]["sra"]["softness"] in (0.1, 1.0)
    assert study["arms"]["standard"]["softness"] is None
    assert set(study["curves"]) == set(study["matched"]["arms"]) == set(study["arms"])
    assert [row["lambda"] for row in study["lambda_sweep"]] == [0.1, 10.0]
    assert study["lambda_sweep"][0]["cosine_with_raw"] < study["lambda_sweep"][1]["cosine_with_raw"]
    assert {len(rows) for rows in study["spectrum"]["cosine_after"]} == {len(study["atoms"])}
    assert study["prompts"]["harmful"]["extract"]["kept"] == len(result.materials.harmful)


def test_drift_is_split_into_refusing_and_answering(result):
    split = result.study["drift_split"]
    assert set(split) == {"standard", "projected", "sra"}
    for arm, parts in split.items():
        whole = result.evaluation["arms"][arm]["kl_tokens"]["value"]
        assert parts["refusing"]["value"] + parts["answering"]["value"] == pytest.approx(whole, rel=1e-9)
        assert 0 <= parts["refusing"]["value"] <= result.evaluation["arms"][arm]["kl_first_token"]["value"]


def test_kl_to_the_twin_falls_where_answers_come_back(result):
    twin = result.study["twin"]
    assert set(twin) == {"base", "standard", "projected", "sra"}
    assert 0 <= twin["sra"]["value"] < twin["base"]["value"] / 2


def test_the_curve_meets_the_test_score_at_the_chosen_strength(result):
    for arm, entry in result.study["arms"].items():
        points = {p["strength"]: p for p in result.study["curves"][arm]}
        if entry["strength"] in points:
            point, scored = points[entry["strength"]], result.evaluation["arms"][arm]
            assert point["kl_first_token"]["value"] == pytest.approx(scored["kl_first_token"]["value"], rel=1e-4)
            assert point["refusal_rate"] == scored["refusal_rate"]


def test_the_samples_are_one_row_an_arm_and_prompt(result, inputs):
    assert len(result.samples) == 4 * 48
    assert not any("text" in row for row in result.samples)
    keys = {p.key for p in (*inputs.harmful.test, *inputs.harmless.test)}
    assert {row["prompt"] for row in result.samples} == keys
    refused = sum(row["verdict"] == "refuse" for row in result.samples if (row["arm"], row["set"]) == ("sra", "harmful"))
    assert refused / 24 == result.evaluation["arms"]["sra"]["refusal_rate"]["value"]


@pytest.mark.usefixtures("result")
def test_the_model_is_left_as_it_was(inputs):
    assert fingerprint(inputs.model.network) == inputs.model.fingerprint
    assert not any(module._forward_hooks for module in inputs.model.network.modules())


def test_a_study_of_one_control_alone_says_what_it_lacks(inputs, configured, tmp_path):
    config = configured(arms=["random_atoms"], gamma_rule="flat", lam_sweep=[], curve_strengths=[1.0], ceilings=False)
    found = sra.run(inputs, config, Steps(tmp_path))
    assert list(found.evaluation["arms"]) == ["base", "random_atoms"]
    assert (found.study["passes"], found.study["lambda_sweep"], found.study["ceilings"]) == ([], [], None)
    assert "the gamma rule of this run is flat" in found.study["decomposition"]["sentence"]
    assert torch.isfinite(found.cleaned).all()


def test_a_study_without_the_method_needs_no_strength_rule(inputs, configured, tmp_path):
    config = configured(arms=["standard"], lam_sweep=[], curve_strengths=[1.0], ceilings=False)
    found = sra.run(inputs, config, Steps(tmp_path))
    assert list(found.evaluation["arms"]) == ["base", "standard"]
    assert isinstance(found.study["forecast"]["pays"], bool)


def test_random_atoms_follow_the_seed(bench, configured):
    from resect.studies.arms import ARMS, recipe

    made = [
        recipe(ARMS["random_atoms"], bench.materials, configured(seed=seed), softness=0.1, gamma_atom=bench.gamma_atom).vectors
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2])


def test_a_step_of_a_small_model_computes_on_one_thread(bench):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert bench.step("threads", lambda _lab: torch.get_num_threads()) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
