"""The model card of an edited model: what was edited, how, what was measured, and what it must not be used for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resect import __version__
from resect.commands.edits import Edit
from resect.edit.bake import BakeReport
from resect.models.load import ChatModel

MEASURES = {
    "refusal_rate": "refused, harmful prompts",
    "benign_refusal_rate": "refused, benign prompts",
    "kl_first_token": "KL from the base, first token (nats)",
    "kl_tokens": "KL from the base, per token (nats)",
    "recovery": "answers as the helpful twin",
}
RESPONSIBLE = (
    "This model refuses less than the one it was made from, and nothing took the place of the refusals. It is meant for research on "
    "refusal, for auditing how fragile refusals are, and for removing false refusals. Whoever deploys it answers for what it says: put a "
    "policy and a filter in front of it, measure on your own prompts, and keep to the licence of the base model."
)


def model_card(model: ChatModel, edit: Edit, report: BakeReport) -> str:
    """Return the card as Markdown with a metadata block."""
    # A path says more about the machine than about the model.
    name = Path(model.name).name if Path(model.name).is_dir() else model.name
    parts = [
        "---\ntags:\n- resect\n- refusal-ablation\nlibrary_name: transformers\n---",
        f"# {name}, refusal edited",
        "## What was edited",
        f"{len(report.changes)} parameters of {len({c.writer for c in report.changes})} residual writers of `{name}` "
        f"(fingerprint `{model.fingerprint}`, {type(model.network).__name__}, {len(model.blocks)} blocks); "
        f"{len(report.untouched)} writers were left as they were.",
        "## How",
        f"With resect {__version__}: {edit.sentence}. Each weight W that writes to the residual stream became W − γ U (Cᵀ W), and each "
        f"bias likewise. Component left along the directions: {_left(report)}.",
        *edit.notes,
        "## What was measured",
        _figures(edit.figures),
        "## Responsible use",
        RESPONSIBLE,
    ]
    return "\n\n".join(parts) + "\n"


def _left(report: BakeReport) -> str:
    left = [share for change in report.changes for share in change.left]
    return f"{min(left):.2g} to {max(left):.2g} of what was there" if left else "nothing was changed"


def _figures(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "Nothing was measured of this edit when it was saved; measure it before you rely on it."
    head = ["| measure (95 % interval) | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    rows = [f"| {title} | " + " | ".join(_measured(arm.get(name)) for arm in figures.values()) + " |" for name, title in MEASURES.items()]
    names = dict.fromkeys(name for arm in figures.values() for name in arm.get("perplexity") or {})
    rows += [f"| perplexity, {n} | " + " | ".join(_measured(arm["perplexity"].get(n)) for arm in figures.values()) + " |" for n in names]
    kept = [row for row in rows if row.replace("–", "").strip("| ") not in MEASURES.values()]
    return "\n".join(["On held-out test prompts, the edit applied by hooks:", "", *head, *kept])


def _measured(measure: Mapping[str, Any] | None) -> str:
    if not measure or measure.get("value") is None:
        return "–"
    interval = "" if measure.get("low") is None else f" ({measure['low']:.3g} to {measure['high']:.3g})"
    return f"{measure['value']:.3g}{interval}, n = {measure['n']}"
