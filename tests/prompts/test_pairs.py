import pytest

from resect.errors import UserError
from resect.prompts import Prompt, PromptSet, load_prompts, pair_ids


def side(name, ids):
    return PromptSet(name, tuple(Prompt(f"{name} {k}", pair_id=i) for k, i in enumerate(ids)))


def test_partners_are_found_whatever_their_order(tmp_path):
    assert pair_ids(side("harmful", ["1", "2"]), side("benign", ["2", "9", "1"])) == (["1", "2"], ["2", "9", "1"])
    (tmp_path / "a.csv").write_text("text,pair_id\nx,1\n")
    (tmp_path / "b.jsonl").write_text('{"text": "y", "pair_id": 1}\n')
    assert pair_ids(load_prompts(tmp_path / "a.csv"), load_prompts(tmp_path / "b.jsonl")) == (["1"], ["1"])


@pytest.mark.parametrize(
    ("harmful", "benign", "message"),
    [
        (["1", None], ["1"], r"1 of 2 prompts of 'harmful' have no pair_id; give every row one, or match by category"),
        (["1"], ["1", "1"], r"Pair id '1' stands on 2 prompts of 'benign'; give every pair its own id"),
        (["1", "2", "3"], ["1"], r"2 of 3 prompts of 'harmful' have no partner in 'benign' \(the first has pair id '2'\)"),
    ],
)
def test_what_is_no_pair_is_named(harmful, benign, message):
    with pytest.raises(UserError, match=message):
        pair_ids(side("harmful", harmful), side("benign", benign))
