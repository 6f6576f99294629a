"""Tasks of lm-evaluation-harness on local data; needs the package, and neither a network nor its data sets."""

import json

import pytest
import torch

from resect.edit import hooks
from resect.edit.plan import make_plan
from resect.errors import UserError
from resect.evaluation import harness
from resect.evaluation.forced import score
from resect.evaluation.harness import run_tasks
from resect.models.writers import find_writers

TASK = """task: which_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
DOCUMENTS = [{"question": f"w{10 + i} w9", "choices": ["w20 w21", "w22 w23"], "label": i % 2} for i in range(12)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra `bench` is not installed")
    # Tables of local data go here, not into the user's cache.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    (tmp_path / "which_word.yaml").write_text(TASK.format(data=data))
    return tmp_path


def likelier(model):
    """Which choice is likelier after each question, by our own teacher forcing."""
    sums, asked = {}, [tuple(model.tokenizer(d["question"])["input_ids"]) for d in DOCUMENTS]
    for k in (0, 1):
        said = [tuple(model.tokenizer(d["choices"][k])["input_ids"]) for d in DOCUMENTS]
        for batch in score(model, asked, said):
            sums |= {(i, k): float(batch.logprobs[row, range(2), list(said[i])].sum()) for row, i in enumerate(batch.rows)}
    return [float((sums[i, 1] > sums[i, 0]) == d["label"]) for i, d in enumerate(DOCUMENTS)]


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_our_own_teacher_forcing_and_an_edit_put_on_changes_them(folder, make_model):
    model = make_model()
    before = run_tasks(model, ["which_word"], folder=folder, chat=False)["which_word"].scores["acc"]
    assert list(before) == likelier(model)
    writers = find_writers(model)
    vectors = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(3))
    with hooks.applied(model, writers, make_plan(writers, vectors, torch.full((4,), 3.0))):
        during = run_tasks(model, ["which_word"], folder=folder, chat=False)["which_word"].scores["acc"]
        assert list(during) == likelier(model)
    assert during != before
    assert run_tasks(model, ["which_word"], folder=folder, chat=False, limit=5)["which_word"].scores["acc"] == before[:5]


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_is_not_there_and_data_that_is_not(folder, make_model):
    with pytest.raises(UserError, match="There is no task 'which_wrod' in lm-evaluation-harness nor in"):
        run_tasks(make_model(), ["which_wrod"], folder=folder)
    (folder / "documents.jsonl").unlink()
    with pytest.raises(UserError, match="The tasks which_word cannot be run"):
        run_tasks(make_model(), ["which_word"], folder=folder)


def test_a_missing_package_is_named(make_model, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(harness, "import_module", absent)
    with pytest.raises(UserError, match=r"'lm-eval', which is not installed; run: pip install 'resect\[bench\]'"):
        run_tasks(make_model(), ["any"])


def test_documents_are_in_their_own_order_and_metrics_without_one_number_a_document_are_left_out():
    samples = [{"doc_id": 1, "metrics": ["acc", "f1"], "acc": 0, "f1": (1, 2)}, {"doc_id": 0, "metrics": ["acc"], "acc": 1.0}]
    assert harness._scores("t", samples).scores == {"acc": (1.0, 0.0)}
    with pytest.raises(UserError, match=r"'t' has no metric with one number a document \(f1\)"):
        harness._scores("t", [{"doc_id": 0, "metrics": ["f1"], "f1": [1, 2]}])
