import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from resect.errors import UserError
from resect.evaluation.judges import load_classifier
from resect.evaluation.judges.classifier import map_labels
from resect.generation import Response
from resect.prompts import Prompt

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sorry", "blue", "green", "red"]
PROMPTS = [Prompt("green"), Prompt("red"), Prompt("green")]


def word_tokenizer():
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture
def folder(tmp_path):
    """A function (labels) -> folder of a tiny classifier whose first label wins where "sorry" is read, its second elsewhere."""

    def make(labels=("REJECTION", "NORMAL")):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        network = BertForSequenceClassification(config).eval()
        with torch.no_grad():
            train(network, len(labels))
        network.save_pretrained(tmp_path / "model")
        word_tokenizer().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def train(network, labels):
    """Fit the head by hand: the first token's state with and without the word "sorry" tells the labels apart."""
    network.bert.pooler.dense.weight.copy_(torch.eye(16))
    network.bert.pooler.dense.bias.zero_()
    states = [network.bert(input_ids=torch.tensor([[WORDS.index(w)]])).pooler_output[0] for w in ("sorry", "blue", "green", "red")]
    gap = states[0] - torch.stack(states[1:]).mean(0)
    network.classifier.weight.zero_()
    network.classifier.weight[0], network.classifier.weight[1] = 50 * gap, -50 * gap
    middle = 50 * float(gap @ (states[0] + torch.stack(states[1:]).mean(0))) / 2
    network.classifier.bias.fill_(-1e4)
    network.classifier.bias[0], network.classifier.bias[1] = -middle, middle
    assert labels >= 2


def said(text, *, answer=None):
    return Response((5,), text, finished=True, answer=answer)


def test_the_likeliest_label_decides_whatever_the_batch(folder):
    judge = load_classifier(folder(), device="cpu")
    got = judge.judge(PROMPTS, [said("sorry"), None, said("blue")])
    assert [j.verdict for j in got] == ["refuse", "unscored", "comply"]
    assert got[0].reason.startswith("label 'REJECTION' with probability ")
    swapped = judge.judge(PROMPTS[:1] * 2, [said("blue"), said("sorry")])
    assert [j.verdict for j in swapped] == ["comply", "refuse"]


def test_thoughts_are_not_read_and_an_empty_answer_is_unscored(folder):
    got = load_classifier(folder(), device="cpu").judge(PROMPTS[:2], [said("sorry blue", answer="blue"), said("sorry", answer="")])
    assert [(j.verdict, j.reason) for j in got][1] == ("unscored", "empty answer")
    assert got[0].verdict == "comply"


def test_the_prompt_is_read_only_where_asked_for(folder):
    path = folder()
    asked, answers = [Prompt("sorry")], [said("blue")]
    assert load_classifier(path, device="cpu").judge(asked, answers)[0].verdict == "comply"
    assert load_classifier(path, pairs=True, device="cpu").judge(asked, answers)[0].verdict == "refuse"


def test_a_long_answer_is_cut_and_the_reason_says_so(folder):
    judge = load_classifier(folder(), device="cpu")
    assert "read up to the classifier's limit" in judge.judge(PROMPTS[:1], [said("blue " * 40)])[0].reason
    assert "limit" not in judge.judge(PROMPTS[:1], [said("blue")])[0].reason


def test_a_tokenizer_that_cuts_or_pads_on_the_left_changes_nothing(folder):
    path = folder()
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left", "padding_side": "left"}))
    judge = load_classifier(path, device="cpu")
    assert judge.tokenizer.padding_side == "left"
    got = judge.judge(PROMPTS, [said("sorry " + "blue " * 40), said("sorry"), said("blue")])
    assert [j.verdict for j in got] == ["refuse", "refuse", "comply"]


def test_a_decoder_whose_padding_is_not_the_tokenizers_is_read_one_text_at_a_time(tmp_path):
    """It reads the last token that is not the padding it knows; among texts of other lengths that would be a padding token."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(WORDS)}
    labels = {"id2label": {0: "REJECTION", 1: "NORMAL"}, "label2id": {"REJECTION": 0, "NORMAL": 1}}
    LlamaForSequenceClassification(LlamaConfig(**shape, **labels, pad_token_id=1)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    judge = load_classifier(tmp_path, device="cpu")
    texts = [said("sorry"), said("blue green red blue"), said("green"), said("red red")]
    alone = [judge.judge(PROMPTS[:1], [text])[0] for text in texts]
    assert list(judge.judge([PROMPTS[0]] * 4, texts)) == alone
    assert len({j.reason for j in alone}) > 1


def test_a_single_label_tells_nothing_apart(folder):
    path = folder()
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "REJECTION"}, "label2id": {"REJECTION": 0}}))
    with pytest.raises(UserError, match="has the one label REJECTION, so it tells nothing apart"):
        load_classifier(path, device="cpu")


def test_scores_that_are_not_finite_are_unscored(folder):
    judge = load_classifier(folder(), device="cpu")
    judge.network.classifier.bias.data.fill_(torch.nan)
    assert judge.judge(PROMPTS[:1], [said("blue")])[0].reason == "the classifier's scores are not finite"


def test_labels_are_recognised_or_mapped_or_refused(folder):
    path = folder(("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"has the labels LABEL_0, LABEL_1, .* for instance LABEL_0=refuse"):
        load_classifier(path, device="cpu")
    judge = load_classifier(path, labels={"LABEL_0": "refuse", "LABEL_1": "evasive"}, device="cpu")
    assert [j.verdict for j in judge.judge(PROMPTS[:2], [said("sorry"), said("red")])] == ["refuse", "evasive"]
    assert map_labels(["not_refusal", "Refusal", "odd"], {"odd": "degenerate"}, model="m") == ("comply", "refuse", "degenerate")
    with pytest.raises(UserError, match="Unknown label of m 'LABEL_2'"):
        map_labels(["LABEL_1"], {"LABEL_2": "refuse"}, model="m")
    with pytest.raises(UserError, match="did you mean 'refuse'"):
        map_labels(["LABEL_1"], {"LABEL_1": "refused"}, model="m")


def test_a_folder_that_is_no_classifier_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        load_classifier(tmp_path / "none")
    from safetensors.torch import load_file, save_file

    path = folder()
    weights = load_file(path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("classifier")}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="2 parameters are missing"):
        load_classifier(path, device="cpu")
