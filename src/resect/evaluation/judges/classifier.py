"""A text-classification model as judge: a local folder or Hub id, run here, nothing sent anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from resect.errors import UserError, unknown_name
from resect.evaluation.judges.values import EMPTY_ANSWER, NO_RESPONSE, check_pairs
from resect.evaluation.verdicts import VERDICTS, Judgement, Verdict
from resect.generation import Response
from resect.models import source as sources
from resect.models.load import check_complete, check_finite, load_tokenizer
from resect.prompts import Prompt

# Names that published refusal classifiers give their labels, without case and marks.
_KNOWN: dict[Verdict, tuple[str, ...]] = {
    "refuse": ("refuse", "refusal", "refused", "reject", "rejection", "rejected"),
    "comply": ("comply", "compliance", "complied", "normal", "answer", "nonrefusal", "notrefusal", "norefusal"),
    "evasive": ("evasive", "evasion"),
    "degenerate": ("degenerate", "gibberish"),
}
_LONGEST = 512  # tokens read where the tokenizer names no limit of its own


@dataclass(frozen=True, eq=False)
class ClassifierJudge:
    """The verdict of the likeliest label. `verdicts` has one entry per label of the network, in its order.

    The network reads the answer without its thoughts; with `pairs`, the prompt and the answer as two texts. Longer texts lose their
    end, and the reason says so.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    verdicts: tuple[Verdict, ...]
    pairs: bool = False
    batch: int = 16
    name: str = "classifier"

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[Response | None]) -> tuple[Judgement, ...]:
        """Return one judgement per response; an empty answer cannot be classified and is unscored."""
        check_pairs(prompts, responses)
        found = [NO_RESPONSE if r is None else EMPTY_ANSWER for r in responses]
        texts = {i: (prompts[i].text, r.answer_text) for i, r in enumerate(responses) if r is not None and r.answer_text.strip()}
        for i, judgement in zip(texts, self._classify(list(texts.values())), strict=True):
            found[i] = judgement
        return tuple(found)

    @torch.no_grad()
    def _classify(self, texts: Sequence[tuple[str, str]]) -> Iterator[Judgement]:
        config = self.network.config
        # Some families (RoBERTa) start counting positions at 2.
        limit = min(self.tokenizer.model_max_length, (getattr(config, "max_position_embeddings", None) or _LONGEST + 2) - 2)
        # Decoders read the last token that is not the padding they know; batches with another one would be read at a padding token.
        padded = self.tokenizer.pad_token_id is not None and config.pad_token_id == self.tokenizer.pad_token_id
        step = self.batch if padded else 1
        for start in range(0, len(texts), step):
            rows = texts[start : start + step]
            first, second = [answer for _, answer in rows], None
            if self.pairs:
                first, second = [prompt for prompt, _ in rows], first
            options: dict[str, Any] = {"padding": padded, "padding_side": "right", "truncation": True, "max_length": limit}
            inputs = self.tokenizer(first, second, return_tensors="pt", **options).to(self.network.device)
            full = inputs["attention_mask"].sum(1) >= limit
            for scores, cut in zip(self.network(**inputs).logits.float(), full.tolist(), strict=True):
                yield self._judgement(scores, cut=cut)

    def _judgement(self, scores: torch.Tensor, *, cut: bool) -> Judgement:
        if not bool(torch.isfinite(scores).all()):
            return Judgement("unscored", "the classifier's scores are not finite")
        best = int(scores.argmax())
        label = _label_names(self.network.config)[best]
        note = ", read up to the classifier's limit" if cut else ""
        return Judgement(self.verdicts[best], f"label {label!r} with probability {float(scores.softmax(0)[best]):.2f}{note}")


def load_classifier(
    source: str | Path,
    *,
    labels: Mapping[str, str] | None = None,
    pairs: bool = False,
    revision: str | None = None,
    device: str = "auto",
) -> ClassifierJudge:
    """Return a judge around the text classifier in a local folder or Hub repository; weights are read from safetensors only.

    `labels` maps each of its labels to a verdict; without it, labels with usual names ("REJECTION", "NORMAL", …) are recognised.

    Raises:
        UserError: a folder or weights that cannot be read, an incomplete checkpoint, a single label, labels that are not recognised (it
            names them and how to map them), a mapping for a label that does not exist or to a verdict that does not.
    """
    place, target = sources.find(source, revision=revision), sources.device_of(device)
    config = sources.read_config(place, trust_remote_code=False)
    names = _label_names(config)
    if len(names) < 2:
        raise UserError(
            f"The classifier {place.name} has the one label {', '.join(names)}, so it tells nothing apart; give one with several."
        )
    verdicts = map_labels(names, labels, model=place.name)
    tokenizer, _ = load_tokenizer(place, trust_remote_code=False)
    tokenizer.truncation_side = "right"  # an answer that is too long loses its end, never its opening
    options: dict[str, Any] = {"revision": place.revision, "use_safetensors": True, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(place.name, ignore_mismatched_sizes=True, **options)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"The classifier {place.name} cannot be read: {sources.first_line(error)}") from error
    network, info = loaded
    check_complete(info, place.name)
    check_finite(network, name=place.name)
    return ClassifierJudge(network.eval().requires_grad_(requires_grad=False).to(target), tokenizer, verdicts, pairs)


def map_labels(names: Sequence[str], labels: Mapping[str, str] | None, *, model: str) -> tuple[Verdict, ...]:
    """Return the verdict of each label, given or recognised.

    Raises: UserError as `load_classifier` does.
    """
    for label, verdict in (labels or {}).items():
        if label not in names:
            raise unknown_name(f"label of {model}", label, names)
        if verdict not in VERDICTS:
            raise unknown_name(f"verdict for label {label!r}:", verdict, VERDICTS)
    given = cast(Mapping[str, Verdict], labels or {})
    known: list[Verdict | None] = [given.get(name) or _recognised(name) for name in names]
    if unknown := [name for name, verdict in zip(names, known, strict=True) if verdict is None]:
        raise UserError(
            f"The classifier {model} has the labels {', '.join(names)}, and it is not known what {', '.join(unknown)} means; map each to "
            f"one of {', '.join(VERDICTS)}, for instance {unknown[0]}=refuse."
        )
    return tuple(cast(Verdict, verdict) for verdict in known)


def _recognised(name: str) -> Verdict | None:
    bare = "".join(c for c in name.casefold() if c.isalnum())
    return next((verdict for verdict, names in _KNOWN.items() if bare in names), None)


def _label_names(config: PreTrainedConfig) -> list[str]:
    names: dict[Any, Any] = dict(config.id2label or {})
    return [str(names[i]) for i in sorted(names)]
