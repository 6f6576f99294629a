import json
import shutil

import pytest

from resect.studies import contrast
from resect.studies.steps import Steps


def test_the_document_has_every_arm_in_every_part(contrasted):
    document = contrasted[0].document
    names = {arm.name for arm in contrasted[0].arms}
    assert set(document["arms"]) == set(document["grids"]) == names
    assert set(document["evaluation"]) == names | {"base"}
    assert {entry["arm"] for entry in document["protocol"]["arms"]} == {
        a.name for a in contrasted[0].arms if a.variant in ("plain", "raw_norm")
    }
    assert set(document["matched"]["arms"]) == {a.name for a in contrasted[0].arms if not a.control}
    assert set(document["capture"]) == {a.name for a in contrasted[0].arms if a.variant == "plain"}
    assert sorted(entry["order"] for entry in document["arms"].values()) == list(range(len(names)))
    assert json.loads(json.dumps(document)) == document


def test_figures_have_their_n_and_the_base_refuses(contrasted):
    base = contrasted[0].document["evaluation"]["base"]["any"]
    assert base["refusal_rate"]["n"] == 20
    assert base["refusal_rate"]["value"] > 0.9
    assert base["kl_tokens"]["value"] == pytest.approx(0, abs=1e-9)
    assert base["recovery"]["value"] < 0.2
    for found in contrasted[0].document["evaluation"].values():
        for place in ("any", "single"):
            assert found[place]["kl_tokens_top100"]["value"] <= found[place]["kl_tokens"]["value"] + 0.2
            assert sum(found[place]["verdicts"].values()) == 20


def test_real_directions_work_where_random_ones_do_not(contrasted):
    evaluation = contrasted[0].document["evaluation"]
    for name in ("unmatched/mean_difference", "matched/mean_difference", "matched/class_means"):
        assert evaluation[name]["any"]["refusal_rate"]["value"] < 0.2
    assert evaluation["unmatched/random"]["any"]["refusal_rate"]["value"] > 0.8
    random = next(v for v in contrasted[0].document["verdicts"] if v["question"] == "random" and v["place"] == "any")
    assert random["more"] == random["n"] == 2


def test_a_choice_among_single_layers_edits_one(contrasted):
    for entry in contrasted[0].document["arms"].values():
        assert len(entry["chosen"]["single"]["layers"]) == 1


def test_a_killed_run_goes_on_to_the_same_document(contrasted, tmp_path):
    result, inputs, config, folder = contrasted
    shutil.copytree(folder, tmp_path / "run")
    gone = ("test_unmatched_mean_difference*", "grid_matched_mean_difference.json", "curve_matched_class*", "matched.json", "audit.json")
    for pattern in gone:
        for path in (tmp_path / "run" / "steps").glob(pattern):
            path.unlink()
    (tmp_path / "run" / "activations" / "held_out.safetensors").unlink()
    ran = []
    again = contrast.run(inputs, config, Steps(tmp_path / "run", ran.append))
    assert again.document == result.document
    assert {"grid_matched_mean_difference", "held_out", "audit"} <= set(ran)
    assert not any(name.startswith("choice") for name in ran)


def test_no_response_to_a_harmful_prompt_is_kept(contrasted):
    """Steps hold verdicts; token ids only of the base's answers to harmless prompts and of the twin."""
    allowed = ("base_harmless_", "twin_test")
    for path in (contrasted[3] / "steps").iterdir():
        if path.name.startswith(("test_", "read_", "choice_", "grid_", "curve_", "dose_")):
            assert '"text"' not in path.read_text()
            assert '"ids"' not in path.read_text()
    assert any(path.name.startswith(allowed) for path in (contrasted[3] / "steps").iterdir())
