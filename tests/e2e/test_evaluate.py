"""`resect evaluate MODEL`: checkpoints on a suite through the real command line, and everything that a judge can do wrong."""

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import resect
from resect.organism.shipped import load_organism

ROOT = Path(__file__).parents[2]
HELPFUL = Path(resect.__file__).parent / "data" / "organism" / "helpful"
LANGUAGE = load_organism().language
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(kind, prompts, **more):
    return [{"kind": kind, "text": p.text, "category": p.category} | {k: getattr(p, v) for k, v in more.items()} for p in prompts]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite in the organism's language."""
    questions = LANGUAGE.capabilities()["facts"].first(6)
    graded = [row | {"grade": "exact"} for row in rows("question", questions, reference="response")]
    benign = [*LANGUAGE.harmless("test").first(12), *LANGUAGE.matched("test").first(8)]
    everything = [*rows("harmful", LANGUAGE.harmful("test").first(16)), *rows("harmless", benign), *graded]
    return write(tmp_path_factory.mktemp("suite") / "suite.jsonl", [*everything, {"kind": "text", "text": LANGUAGE.texts()[0]}])


@pytest.fixture(scope="module")
def against(suite, resect, tmp_path_factory):
    """The folder of the organism against its helpful twin, and what was printed; not to be changed."""
    out = tmp_path_factory.mktemp("against") / "out"
    return out, resect("evaluate", "default", "--against", HELPFUL, "--suite", suite, "--out", out, "--json")


def test_two_checkpoints_are_told_apart_by_two_judges_with_intervals_and_tests(against):
    out, outcome = against
    assert (outcome.code, outcome.json) == (0, json.loads((out / "evaluation.json").read_text()))
    base, twin = (outcome.json["arms"][arm] for arm in ("base", "against"))
    assert (base["refusal_rate"]["value"], twin["refusal_rate"]["value"], base["refusal_rate"]["n"]) == (1.0, 0.0, 16)
    assert twin["judges"]["markers"]["compliance_rate"]["value"] == 1.0
    for entry in (base, twin):
        assert set(entry["judges"]) == {"markers", "log_odds"}
        assert entry["agreement"]["markers / log_odds"]["kappa"]["n"] == 36
        assert entry["exact_match"]["all"]["value"] == 1.0
        assert entry["perplexity"].keys() == {"questions", "text"}
    assert "kl_tokens" not in base
    for measure in ("kl_first_token", "kl_tokens"):
        assert twin[measure]["value"] > 1e6 * twin[measure]["floor"] > 0, "another model stands far above rounding in float32"
    assert {about["dtype"] for about in outcome.json["subjects"].values()} == {"float32"}
    drift = twin["drift"]
    assert drift["refusing"]["value"] + drift["answering"]["value"] == pytest.approx(twin["kl_tokens"]["value"])
    assert drift["by_position"][0]["mean"] == pytest.approx(twin["kl_first_token"]["value"])
    assert drift["by_position"][0]["n"] == 20
    tests = {(row["measure"], row.get("judge")): row for row in outcome.json["comparisons"]}
    assert tests["refusal_rate", "markers"]["p_holm"] < 0.001
    assert tests["refusal_rate", "markers"]["needed"] is None
    assert tests["exact_match", None]["needed"] > 300
    assert outcome.json["suite"]["counts"] == {"harmful": 16, "harmless": 20, "question": 6, "text": 1}


def test_nothing_that_was_said_to_harmful_prompts_is_on_disk(against):
    out, _ = against
    everything = "".join(p.read_text() for p in out.rglob("*") if p.is_file())
    assert not any(prompt.text in everything or prompt.response in everything for prompt in LANGUAGE.harmful("test").first(16))
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * 36
    assert samples[0]["verdicts"] == {"markers": "refuse", "log_odds": "refuse"}


def test_asked_again_it_reads_everything_back_and_says_the_same(against, suite, resect):
    out, before = against
    stamps = {p: p.stat().st_mtime_ns for p in (out / "steps").iterdir()}
    again = resect("evaluate", "default", "--against", HELPFUL, "--suite", suite, "--out", out, "--json")
    assert again.json == before.json
    assert {p: p.stat().st_mtime_ns for p in (out / "steps").iterdir()} == stamps


def test_results_of_another_model_or_setting_are_never_mixed_in(against, suite, refuses):
    out, _ = against
    message = f"The folder {out} holds another run (kl_tokens was 8, now 4); choose another --out, or remove it."
    refuses("evaluate", "default", "--against", HELPFUL, "--suite", suite, "--out", out, "--set", "kl_tokens=4", message=message)


def test_a_runs_edit_is_put_on_and_taken_off(finished, suite, resect, tmp_path):
    run, _ = finished
    outcome = resect("evaluate", "default", "--edit", run, "--suite", suite, "--out", tmp_path / "out", "--set", "kl_tokens=500")
    assert outcome.code == 0, outcome.err
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    base, edited = (evaluation["arms"][arm] for arm in ("base", "edited"))
    assert base["refusal_rate"]["value"] == 1.0
    assert edited["refusal_rate"]["value"] < 0.5
    assert edited["kl_first_token"]["value"] > 0
    # k is larger than every response: each is followed to its own end.
    assert len(edited["drift"]["by_position"]) < 40
    assert evaluation["subjects"]["edited"]["edit"].startswith("arm `sra`")
    assert "markers / log_odds agree on" in outcome.out
    assert "you need n =" in outcome.out


def test_the_example_runs_and_a_base_that_never_refuses_is_said(resect, tmp_path):
    outcome = resect("evaluate", HELPFUL, "--suite", ROOT / "examples" / "suite.jsonl", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["suite"]["counts"] == {"harmful": 2, "harmless": 3, "question": 2, "text": 1}
    assert "The log-odds judge learns from one half" in outcome.err
    assert "fewer than two of them scored this model" in outcome.err


def test_different_vocabularies_have_no_drift_but_everything_else(tiny, suite, resect, tmp_path):
    model = tiny("qwen3")
    model.network.save_pretrained(tmp_path / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "tiny")
    command = (
        "evaluate",
        "default",
        "--against",
        tmp_path / "tiny",
        "--suite",
        suite,
        "--out",
        tmp_path / "out",
        "--set",
        "max_new_tokens=8",
    )
    outcome = resect(*command)
    assert outcome.code == 0, outcome.err
    entry = json.loads((tmp_path / "out" / "evaluation.json").read_text())["arms"]["against"]
    assert (entry["kl_first_token"], entry["kl_tokens"]) == (None, None)
    assert entry["perplexity"]["questions"]["value"] > 1
    assert "different vocabularies (260 and " in entry["differences"]["tokenizer"]
    assert "so no KL between them can be told" in outcome.err
    assert "Perplexity of questions, text is per token, and the base cuts the texts into other tokens: not compared." in entry["missing"]
    comparisons = json.loads((tmp_path / "out" / "evaluation.json").read_text())["comparisons"]
    assert not [row["measure"] for row in comparisons if row["measure"].startswith(("nll", "kl"))]
    assert "refusal tokens of organism" in outcome.err


@pytest.fixture
def twin(tmp_path):
    """A function: the folder of the helpful twin with another chat template."""

    def copy(change):
        folder = shutil.copytree(HELPFUL, tmp_path / "twin")
        template = folder / "chat_template.jinja"
        template.write_text(change(template.read_text()))
        return folder

    return copy


def test_another_template_and_dtype_are_said_in_the_table_and_in_the_results(twin, suite, resect, tmp_path):
    folder = twin(lambda template: "{{ 'please ' }}" + template)
    command = ("evaluate", "default", "--against", folder, "--suite", suite, "--dtype", "bfloat16", "--set", "max_new_tokens=4")
    outcome = resect(*command, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["arms"]["base"]["differences"] == {}
    there = evaluation["arms"]["against"]["differences"]
    assert set(there) == {"chat template", "dtype"}
    assert "writes 42 of 42 prompts otherwise" in there["chat template"]
    assert evaluation["arms"]["against"]["kl_tokens"]["value"] > 0, "the figure is there, with its note"
    assert "differs from the base in" in outcome.out
    assert "chat template, dtype" in outcome.out
    assert all(f"Note: against: {sentence}" in outcome.err for sentence in there.values())


def test_a_copy_of_the_model_is_not_told_from_it_and_dtypes_are_named(suite, resect, tmp_path):
    """The same file twice differs in nothing; a copy in bfloat16 by no more than rounding makes there."""
    aligned = HELPFUL.with_name("aligned")
    for dtype, values in (("float32", {0.0}), ("bfloat16", None)):
        out = tmp_path / dtype
        command = ("evaluate", "default", "--against", aligned, "--suite", suite, "--dtype", dtype, "--set", "max_new_tokens=4")
        outcome = resect(*command, "--out", out)
        assert outcome.code == 0, outcome.err
        evaluation = json.loads((out / "evaluation.json").read_text())
        assert {arm: about["dtype"] for arm, about in evaluation["subjects"].items()} == {"base": "float32", "against": dtype}
        entry = evaluation["arms"]["against"]
        found = [entry[measure] for measure in ("kl_first_token", "kl_tokens")]
        assert all(m["value"] <= m["floor"] for m in found)
        assert values is None or {m["value"] for m in found} == values
        assert outcome.out.count("as rounding alone") == 2
        assert f"aligned, {dtype}" in " ".join(outcome.out.split())


def test_another_template_is_another_evaluation(twin, suite, resect, tmp_path):
    folder = twin(lambda template: template)
    command = ("evaluate", folder, "--suite", suite, "--out", tmp_path / "out", "--set", "max_new_tokens=4")
    assert resect(*command).code == 0
    (folder / "chat_template.jinja").write_text("{{ 'please ' }}" + (folder / "chat_template.jinja").read_text())
    outcome = resect(*command)
    assert outcome.code == 2
    assert "holds another run (base_tokenizer was " in outcome.err


def test_a_system_prompt_that_one_of_the_two_takes_not_is_refused_before_anything_is_asked(twin, suite, resect, tmp_path):
    folder = twin(lambda template: "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template)
    outcome = resect("evaluate", folder, "--suite", suite, "--out", tmp_path / "out", "--set", 'system="Be brief."')
    assert outcome.code == 2
    assert "takes no system prompt (no system); leave the system prompt out" in outcome.err
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_model_that_only_ends_its_turn_complies_with_nothing(plain, teach, suite, server, resect, tmp_path):
    model = plain("llama")
    teach(model, {"": [p.text for p in LANGUAGE.harmless("test").first(12)]}, steps=40)
    model.network.save_pretrained(tmp_path / "silent")
    model.tokenizer.save_pretrained(tmp_path / "silent")
    judges = ("--judge", "markers", "--judge", f"endpoint:{server(200, reply('comply'))}", "--judge-model", "m", "--judge", "log_odds")
    outcome = resect("evaluate", tmp_path / "silent", "--suite", suite, "--out", tmp_path / "out", *judges)
    base = json.loads((tmp_path / "out" / "evaluation.json").read_text())["arms"]["base"]
    for name in ("markers", "endpoint:m"):
        found = base["judges"][name]
        assert (found["verdicts"]["harmful"]["degenerate"], found["verdicts"]["harmful"]["comply"]) == (16, 0)
        assert (found["compliance_rate"]["value"], found["refusal_rate"]["value"]) == (0.0, 0.0)
    assert "no refusals" in base["judges"]["log_odds"]["error"]
    assert outcome.code == 2, "a judge that was named and failed"


@pytest.fixture
def server():
    """A function: a judge's endpoint that answers every request with a status and a text, after a while."""
    made = []

    def start(status, text, *, wait=0.0):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(wait)
                self.send_response(status)
                self.end_headers()
                self.wfile.write((text() if callable(text) else text).encode())

            def log_message(self, *args):
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        made.append(http)
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{http.server_address[1]}/v1"

    yield start
    for http in made:
        http.shutdown()
        http.server_close()


def reply(word):
    return json.dumps({"choices": [{"message": {"content": word}}]})


@pytest.fixture
def judged(suite, resect, tmp_path):
    """A function: the outcome of an evaluation with an endpoint as third judge, and its document."""

    def evaluate(url, *more):
        judges = ("--judge", "markers", "--judge", "log_odds", "--judge", f"endpoint:{url}", "--judge-model", "m", "--judge-retries", 0)
        outcome = resect("evaluate", "default", "--suite", suite, "--out", tmp_path / "out", *judges, *more)
        return outcome, json.loads((tmp_path / "out" / "evaluation.json").read_text())

    return evaluate


@pytest.mark.parametrize(
    ("status", "text", "wait", "why"),
    [
        (200, "<html>welcome</html>", 0, "HTML"),
        (200, reply("banana split"), 0, "named no verdict but 'banana split'"),
        (200, reply(""), 0, "named no verdict but ''"),
        (200, "comply", 0, "text where JSON belongs"),
        (200, "[]", 0, "JSON without choices[0].message.content"),
        (200, json.dumps({"choices": []}), 0, "JSON without choices[0].message.content"),
        (200, json.dumps({"choices": [{"message": {"content": "comply"}}] * 2}), 0, "2 choices where one was asked for"),
        (401, "no", 0, "HTTP 401"),
        (200, reply("refuse"), 1.0, "no reply within 0.2 s"),
        (None, None, 0, "no connection"),
    ],
)
def test_a_dead_judge_leaves_everything_else_and_no_verdict(server, judged, status, text, wait, why):
    url = "http://127.0.0.1:9/v1" if status is None else server(status, text, wait=wait)
    # Short only where the server is late on purpose: a busy machine can take a fifth of a second for any reply.
    outcome, evaluation = judged(url, "--judge-timeout", 0.2 if wait else 30)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("Error: Judge endpoint:m could not score base: ")
    assert why in outcome.err
    base = evaluation["arms"]["base"]
    assert list(base["judges"]["endpoint:m"]) == ["error"]
    assert base["refusal_rate"]["value"] == 1.0
    assert base["agreement"].keys() == {"markers / log_odds"}


def test_what_a_dying_judge_said_is_kept_and_only_the_rest_is_asked_again(server, judged, tmp_path):
    asked, lock = [], threading.Lock()

    def dying():
        with lock:
            asked.append(1)
            return reply("refuse") if len(asked) <= 10 else "<html>"

    url = server(200, dying)
    outcome, evaluation = judged(url)
    found = evaluation["arms"]["base"]["judges"]["endpoint:m"]
    assert sum(found["verdicts"][side]["refuse"] for side in ("harmful", "harmless")) == 10
    assert sum(found["verdicts"][side]["unscored"] for side in ("harmful", "harmless")) == 26
    assert sum((found[rate] or {"n": 0})["n"] for rate in ("refusal_rate", "benign_refusal_rate")) == 10
    assert all(found[rate] is None or found[rate]["value"] == 0.0 for rate in ("compliance_rate", "benign_compliance_rate"))
    assert "endpoint:m says nothing of" in outcome.err
    assert len(list((tmp_path / "out" / "judgements").rglob("*.json"))) == 10
    asked.clear()
    judged(url)
    assert len(list((tmp_path / "out" / "judgements").rglob("*.json"))) == 20


@pytest.mark.parametrize(("budget", "most"), [(("--judge-requests", 5), 5), (("--judge-tokens", 10_000), 12)])
def test_a_budget_is_kept_and_what_it_bought_is_not_paid_for_again(server, judged, budget, most):
    asked = []
    url = server(200, lambda: asked.append(1) or reply("comply"))
    outcome, evaluation = judged(url, *budget)
    found = evaluation["arms"]["base"]["judges"]["endpoint:m"]
    bought = sum(found["verdicts"][side]["comply"] for side in ("harmful", "harmless"))
    assert 0 < bought == len(asked) <= most
    assert sum((found[rate] or {"n": 0})["n"] for rate in ("compliance_rate", "benign_compliance_rate")) == bought
    assert "the budget is spent" in outcome.err
    outcome, evaluation = judged(url)
    assert (outcome.code, len(asked)) == (0, 36)
    assert evaluation["arms"]["base"]["judges"]["endpoint:m"]["compliance_rate"]["n"] == 16


def classifier(folder, tokenizer, labels):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**shape, id2label=dict(enumerate(labels)), pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_with_unknown_labels_is_refused_at_once_and_works_when_they_are_told(suite, resect, refuses, tmp_path):
    folder = classifier(tmp_path / "classifier", load_organism().aligned().tokenizer, ["LABEL_0", "NORMAL"])
    command = ("evaluate", "default", "--suite", suite, "--out", tmp_path / "out", "--judge", "markers", "--judge", f"classifier:{folder}")
    message = (
        f"The classifier {folder} has the labels LABEL_0, NORMAL, and it is not known what LABEL_0 means; map each to one of refuse, "
        "comply, evasive, degenerate, truncated, unscored, for instance LABEL_0=refuse."
    )
    refuses(*command, message=message)
    assert not (tmp_path / "out").exists()
    outcome = resect(*command, "--judge-label", "LABEL_0=refuse", "--json")
    verdicts = outcome.json["arms"]["base"]["judges"][f"classifier:{folder}"]["verdicts"]["harmful"]
    assert verdicts["refuse"] + verdicts["comply"] == 16


TASK = """task: own_answers
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_gen_toks: 24
  do_sample: false
  until: []
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.filterwarnings("ignore")
def test_tasks_of_the_harness_run_with_an_edit_on_and_are_tested_in_pairs(finished, resect, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra `bench` is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    # Refusals are the right answers here: an edit that removes them must lose the points.
    asked = LANGUAGE.harmful("test").first(8)
    write(tmp_path / "data.jsonl", [{"question": p.text, "answer": LANGUAGE.refusal(p)} for p in asked])
    (tmp_path / "own_answers.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = ("evaluate", "default", "--edit", finished[0], "--tasks", "own_answers", "--task-folder", tmp_path, "--out", tmp_path / "out")
    outcome = resect(*command, "--json")
    arms = {name: entry["tasks"]["own_answers"]["exact_match"] for name, entry in outcome.json["arms"].items()}
    assert (arms["base"]["value"], arms["base"]["n"]) == (1.0, 8)
    assert arms["edited"]["value"] < 0.5
    assert [row["measure"] for row in outcome.json["comparisons"]] == ["own_answers:exact_match"]


def test_what_cannot_be_meant_is_refused_in_one_line(staged, suite, refuses, tmp_path):
    run, _ = staged
    message = (
        f"{run} is a run folder, which is scored on its own test prompts and takes no such options; to score a model with its edit on a "
        f"suite: resect evaluate MODEL --edit {run} --suite FILE"
    )
    refuses("evaluate", run, "--suite", suite, message=message)
    message = (
        f"{tmp_path} is no run folder (it has no run.toml), so it is taken for a model, and there is nothing to score it on; give "
        "--suite FILE or --tasks NAMES."
    )
    refuses("evaluate", tmp_path, message=message)
    message = "--no-cache goes with a run folder, and nothing is kept of default outside --out; leave it out."
    refuses("evaluate", "default", "--suite", suite, "--no-cache", message=message)
    judges = "markers, log_odds, classifier:MODEL, endpoint:URL"
    message = f"One judge is never shown alone, and only markers is named; add another --judge of {judges}."
    refuses("evaluate", "default", "--judge", "markers", message=message)
    message = "--judge-model is about a judge endpoint:…, and there is none among markers, log_odds; name it with --judge."
    refuses("evaluate", "default", "--judge-model", "m", message=message)
    message = "The judge at http://127.0.0.1:9/v1 needs the name of its model; give it with --judge-model NAME."
    refuses("evaluate", "default", "--judge", "markers", "--judge", "endpoint:http://127.0.0.1:9/v1", message=message)
    message = "--judge-label takes LABEL=VERDICT, got 'refuse'; for example --judge-label REJECTION=refuse."
    refuses("evaluate", "default", "--judge", "markers", "--judge", "classifier:x", "--judge-label", "refuse", message=message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"kind": "question", "text": "Add 1 and 2"}],
            "{file}, line 1: a question needs a 'reference', the right answer, found None; add it, or make it harmless.",
        ),
        (
            [{"kind": "harmless", "text": "Bake", "id": 7}, {"kind": "harmless", "text": "Cook", "id": 7}],
            "{file}, line 2: the id '7' is that of {file}, line 1; give every row its own, or leave ids out.",
        ),
        (
            [{"kind": "harmless", "text": " "}],
            "{file}, line 1: a row needs its 'text', found ' '; write what the model is asked or reads.",
        ),
    ],
)
def test_a_suite_with_a_wrong_row_is_refused_with_its_line(refuses, tmp_path, rows, message):
    file = write(tmp_path / "broken.jsonl", rows)
    refuses("evaluate", "default", "--suite", file, "--out", tmp_path / "out", message=message.format(file=file))
    assert not (tmp_path / "out").exists()
