"""The model card of an edited model: what was edited, how, what was measured, and what it must not be used for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resect import __version__
from resect.commands.edits import Edit
from resect.edit.proof import FILE, Proof
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


LIBRARIES = {"baked": "transformers", "adapter": "peft"}


@dataclass(frozen=True)
class Subject:
    """What the card says of the model and of the proof; a fingerprint of None was not taken."""

    name: str
    fingerprint: str | None
    network: str
    blocks: int
    writers: int
    untouched: int
    left: tuple[float, ...]
    notes: tuple[str, ...] = ()


def subject(model: ChatModel, proof: Proof) -> Subject:
    """Return what the card says of a loaded model."""
    return Subject(
        name=model.name,
        fingerprint=model.fingerprint,
        network=type(model.network).__name__,
        blocks=len(model.blocks),
        writers=len(proof.writers),
        untouched=len(proof.untouched),
        left=tuple(share for writer in proof.writers for share in writer.left),
        notes=model.notes,
    )


def model_card(about: Subject, edit: Edit, *, form: str) -> str:
    """Return the card of an edited model (`form` baked) or of an adapter as Markdown with a metadata block."""
    # A path says more about the machine than about the model.
    name = Path(about.name).name if Path(about.name).is_dir() else about.name
    fingerprint = f"fingerprint `{about.fingerprint}`, " if about.fingerprint else ""
    parts = [
        f"---\ntags:\n- resect\n- refusal-ablation\nlibrary_name: {LIBRARIES[form]}\n---",
        f"# {name}, refusal edited",
        "## What was edited",
        f"{about.writers} residual writers of `{name}` ({fingerprint}{about.network}, "
        f"{about.blocks} blocks); `{FILE}` lists each of them with what was measured, and the {about.untouched} parts that were "
        "left as they were, with the reason.",
        "## How",
        f"With resect {__version__}: {edit.sentence}. Each weight W that writes to the residual stream became W − γ U (Cᵀ W), and each "
        f"bias likewise{_kept(edit)}. Component left along the directions: {_left(about)}.",
        *_form(form),
        *edit.notes,
        *about.notes,
        "## What was measured",
        _figures(edit.figures),
        "## Responsible use",
        RESPONSIBLE,
    ]
    return "\n\n".join(parts) + "\n"


def _form(form: str) -> tuple[str, ...]:
    note = "This is an adapter for that very model. Biases are stored as they are after the edit: load the base again to be rid of them."
    return (note,) if form == "adapter" else ()


def _kept(edit: Edit) -> str:
    kinds = sorted({item.preserve for item in edit.plan.edits} - {"nothing"})
    return f", scaled to keep {' and '.join(kinds)} norms" if kinds else ""


def _left(about: Subject) -> str:
    return f"{min(about.left):.2g} to {max(about.left):.2g} of what was there" if about.left else "nothing was changed"


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
    if measure["value"] <= measure.get("floor", -1.0):
        return f"≤ {measure['floor']:.3g} (rounding alone makes as much), n = {measure['n']}"
    interval = "" if measure.get("low") is None else f" ({measure['low']:.3g} to {measure['high']:.3g})"
    return f"{measure['value']:.3g}{interval}, n = {measure['n']}"
