"""`resect apply`: write an edit as a model or an adapter, prove it, and save it as an ordinary folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from resect.commands import console, streamed
from resect.commands.card import model_card, subject
from resect.commands.edits import Edit, Made, from_directions, from_run, given
from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.bake import bake
from resect.edit.copies import Copies
from resect.edit.proof import Observation, Proof, observe, prove
from resect.edit.save import save_edited
from resect.errors import UserError
from resect.models.embeddings import find_embeddings, tied_head, untied
from resect.models.load import ChatModel
from resect.models.writers import Writer, find_writers

OF_A_RUN = {"strength": "strength", "layers": "window", "source": "source"}
"""What `resect edit` can change of a run's edit, under its names there."""


@dataclass(frozen=True)
class Form:
    """In which form the edit is saved: a whole model, the head untied first if asked, or an adapter."""

    adapter: bool = False
    untie: bool = False


def apply(  # noqa: PLR0913
    model: str,
    *,
    run: Path | None,
    directions: Path | None,
    made: Made,
    form: Form,
    out: Path,
    load: dict[str, Any],
    copies: Copies | None,
    as_json: bool,
) -> None:
    """Save the edited model or the adapter with its proof; `made` is for a directions file, a run has its own edit.

    A checkpoint is edited on disk, without loading it, unless the form, another dtype or a device asks for the model in memory.
    """
    _check(run, directions, made, form, out)
    console.quiet_transformers()
    if form == Form() and streamed.is_possible(model, made, load):
        streamed.apply(model, run=run, directions=directions, made=made, out=out, revision=load["revision"], copies=copies, as_json=as_json)
        return
    if copies is not None:
        # In the way of what is written there instead.
        copies.discard()
    # Measured: what brings a model into memory takes two seconds more to import, and the streamed form needs none of it.
    from resect.commands.inputs import open_model

    console.quiet_libraries()
    with console.progress("apply", total=5) as step:
        step("loading")
        loaded = open_model(model, **load)
        step("writers")
        writers = find_writers(loaded, every_block=False)  # the edit proof asks every edited block, before anything is saved
        if made.embeddings is not None:
            writers, loaded = (*writers, *find_embeddings(loaded)), _with_own_head(loaded, form)
        edit = from_run(run, loaded) if run else from_directions(given(directions), writers, loaded, made)
        step("measuring the base")
        before = observe(loaded, writers, edit.plan)
        step("adapter" if form.adapter else "baking")
        save = _save_adapter if form.adapter else _save_model
        proof, document = save(loaded, writers, edit, before, out)
        step("saved")
    if as_json:
        console.show_json({"out": str(out), "edit": edit.sentence, "notes": list(edit.notes), **document})
        return
    _show(proof)
    console.say(f"{'Adapter' if form.adapter else 'Edited model'}: {out}")


def _save_model(model: ChatModel, writers: Sequence[Writer], edit: Edit, before: Observation, out: Path) -> tuple[Proof, dict[str, Any]]:
    changes = bake(model, writers, edit.plan).changes
    proof = _sound(prove(model, writers, edit.plan, before=before))
    document = _document(model, proof, form="baked") | {"changes": [asdict(change) for change in changes]}
    save_edited(model, out, card=model_card(subject(model, proof), edit, form="baked"), proof=document)
    return proof, document


def _save_adapter(model: ChatModel, writers: Sequence[Writer], edit: Edit, before: Observation, out: Path) -> tuple[Proof, dict[str, Any]]:
    adapter = make_adapter(model, writers, edit.plan)
    # Proven as it will be used: read back from a folder, by PEFT.
    with TemporaryDirectory() as folder:
        trial = Path(folder) / "adapter"
        save_adapter(model, adapter, trial, card="")
        proof = _sound(prove(with_adapter(model, trial), writers, edit.plan, before=before))
    document = _document(model, proof, form="adapter")
    save_adapter(model, adapter, out, card=model_card(subject(model, proof), edit, form="adapter"), proof=document)
    return proof, document


def _with_own_head(model: ChatModel, form: Form) -> ChatModel:
    """Return a model whose embeddings can be edited without changing its output head."""
    head = tied_head(model)
    if head is None or form.adapter or form.untie:
        return untied(model) if form.untie else model
    raise UserError(
        f"The token embedding of {model.name} is its output head {head} as well, which --embeddings would change too; add --untie to give "
        "the head weights of its own first."
    )


def _check(run: Path | None, directions: Path | None, made: Made, form: Form, out: Path) -> None:
    if (run is None) == (directions is None):
        raise UserError("Name the edit: either --directions FILE or --edit RUN, and not both.")
    if run is not None and made.given():
        name = made.given()[0]
        there = f": change it with resect edit {run} --{OF_A_RUN[name]} …" if name in OF_A_RUN else " and is applied as it was measured."
        raise UserError(f"--{name} goes with --directions; the edit of a run has its own{there}")
    if form.untie and (made.embeddings is None or form.adapter):
        raise UserError("--untie goes with --embeddings LAYER and a saved model; leave it out, nothing else changes a tied head.")
    # The same check stands at the end of the work, in `new_folder`; here it costs nothing.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder, and nothing is overwritten; choose another --out.")


def _sound(proof: Proof) -> Proof:
    if proof.faults:
        raise UserError(f"The edit proof fails and nothing was saved: {proof.faults[0]} ({len(proof.faults)} faults in all.)")
    return proof


def _document(model: ChatModel, proof: Proof, *, form: str) -> dict[str, Any]:
    return {**proof.to_json(), "model": model.name, "model_fingerprint": model.fingerprint, "form": form}


def _show(proof: Proof) -> None:
    console.show(_table(proof))
    unknown = max((block.unlisted for block in proof.blocks), default=0.0)
    console.say(f"Anything else in these blocks that writes along the directions: at most {unknown:.1e} of what was there.")
    leak = max((writer.leak for writer in proof.writers if writer.preserve != "nothing"), default=None)
    if leak is not None:
        console.say(
            f"Leak of keeping {proof.writers[0].preserve} norms: up to {leak:.3g} of the component is left that the strength removes."
        )
    for item in proof.untouched:
        console.say(f"Not touched: {item.name}: {item.reason}")


def _table(proof: Proof) -> Table:
    title = "Edit proof: change of each writer's output, ‖Y′ − Y‖ / ‖Y‖, and the share of the component that is left"
    table = console.table("writer", "γ", "change, expected", "measured", "left, expected", "measured", "gap", title=title)
    for w in proof.writers:
        expected, left = (max(shares, default=0.0) for shares in (w.expected_left, w.left))
        table.add_row(
            w.writer, f"{w.gamma:.3g}", f"{w.expected_change:.2%}", f"{w.change:.2%}", f"{expected:.3g}", f"{left:.3g}", f"{w.gap:.1e}"
        )
    return table
