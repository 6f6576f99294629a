"""`resect activations`, `directions`, `cleaning`, `edit`, `evaluate`, `report`: one stage at a time, from the files of the one before."""

from pathlib import Path
from typing import Any

from resect import stages
from resect.cache import open_cache
from resect.commands import console
from resect.commands.inputs import Sources, open_run, read_sources
from resect.commands.study import resolve
from resect.errors import UserError
from resect.report.build import build_report
from resect.report.table import summary_table
from resect.run import MANIFEST, finish, read_about, read_settings
from resect.stages import Fixed
from resect.studies.sra import Bench


def activations(
    sources: Sources, given: dict[str, Any], *, out: Path, device: str, trust_remote_code: bool, no_cache: bool, as_json: bool
) -> None:
    """Observe the base and capture activations into a new run folder."""
    config, cache = resolve(sources, given), None if no_cache else open_cache()
    console.quiet_libraries()
    load = sources.prepare(config, device=device, trust_remote_code=trust_remote_code)
    with console.progress("activations", total=13) as step:
        step("loading")
        inputs = load()
        open_run(sources, inputs, config, out)
        bench = stages.take_activations(inputs, config, out, on_step=step, cache=cache)
    counts = bench.behaviour.counts
    if as_json:
        console.show_json({"run": str(out), "prompts": counts, "layers": bench.lab.layers, "atoms": list(bench.materials.names)})
        return
    table = console.table("prompts", "extract", "kept", "validation", "test")
    for side, parts in counts.items():
        table.add_row(
            side, *(str(n) for n in (parts["extract"]["n"], parts["extract"]["kept"], parts["validation"]["n"], parts["test"]["n"]))
        )
    console.show(table)
    console.say(f"Activations after {bench.lab.layers} blocks, {len(bench.materials.names)} atoms: {out / 'activations'}")
    console.say(f"Next: resect directions {out}")


def directions(run: Path, *, as_json: bool) -> None:
    """Write the raw direction and show its norm by layer."""
    norms = stages.make_directions(run).norm(dim=-1).tolist()
    if as_json:
        console.show_json({"run": str(run), "norm": norms})
        return
    table = console.table("layer", "norm")
    for layer, norm in enumerate(norms):
        table.add_row(str(layer), f"{norm:.4g}")
    console.show(table)
    console.say(f"Directions: {run / 'directions.safetensors'}")
    console.say(f"Next: resect cleaning {run}")


def cleaning(run: Path, *, method: str, lam: float | None, as_json: bool) -> None:
    """Write the cleaned direction and show, by layer, how much of the raw one the kept atoms explain and what is left of them."""
    found = stages.make_cleaning(run, method=method, softness=lam)
    kept = [i for i, atom in enumerate(read_about(run)["atoms"]) if atom["role"] != "target"]
    before, after = (t[:, kept].abs().amax(-1).tolist() for t in (found.cosine_before, found.cosine_after))
    shared = found.r_squared.tolist()
    if as_json:
        console.show_json({"run": str(run), "method": method, "r_squared": shared, "largest_cosine": {"before": before, "after": after}})
        return
    table = console.table("layer", "R² on atoms", "largest |cosine| with a kept atom: before", "after")
    for layer, row in enumerate(zip(shared, before, after, strict=True)):
        table.add_row(str(layer), *(f"{value:.3f}" for value in row))
    console.show(table)
    console.say(f"Cleaning: {run / 'cleaning.safetensors'}")
    console.say(f"Next: resect edit {run}")


def edit(run: Path, *, arm: str | None, fixed: Fixed, device: str, trust_remote_code: bool, no_cache: bool, as_json: bool) -> None:
    """Write the edit and show how it was made and what validation says of it."""
    with console.progress("edit", total=16) as step:
        bench = _bench(run, device=device, trust_remote_code=trust_remote_code, no_cache=no_cache, step=step)
        made = stages.make_edit(bench, run, arm=arm, fixed=fixed)
    # The page shows the proof of the run's edit.
    if (run / "report.html").is_file():
        build_report(run)
    _refresh(run)
    if as_json:
        console.show_json(made)
        return
    first, last = made["window"]
    refusal, kl = (made["validation"][name]["value"] for name in ("refusal_rate", "kl_first_token"))
    console.say(f"{made['label']}: {made['method']}")
    console.say(f"Strength {made['strength']:g}, layers {first} to {last}, source {made['source']}; {made['candidates']} candidates tried.")
    console.say(
        f"On validation: {refusal:.1%} refused, KL {kl:.3g} nats.{'' if made['feasible'] else ' No candidate reached the refusal limit.'}"
    )
    console.say(f"Edit: {run / 'edit.json'}")
    console.say(f"Next: resect evaluate {run}, or resect apply MODEL --edit {run} --out DIR")


def evaluate(run: Path, *, device: str, trust_remote_code: bool, no_cache: bool, as_json: bool) -> None:
    """Score the base and the edit on the test prompts."""
    stages.refuse_finished(run, "evaluation")
    with console.progress("evaluation", total=18) as step:
        bench = _bench(run, device=device, trust_remote_code=trust_remote_code, no_cache=no_cache, step=step)
        evaluation = stages.evaluate(bench, run)
    if as_json:
        console.show_json(evaluation)
        return
    console.show(summary_table(evaluation, {}))
    console.say(f"Evaluation: {run / 'evaluation.json'}")


def report(run: Path) -> None:
    """Build report.html of a finished study; of a staged run say what is missing."""
    done, missing = stages.status(run)
    if not (run / "study.json").is_file():
        lacks = f"{', '.join(missing)} and the study" if missing else "the study"
        raise UserError(
            f"{run} has {', '.join(done) or 'nothing'} and lacks {lacks} of all arms, which the report is about; run resect sra with the "
            f"same model, prompts and settings and --out {run} to finish it: what is done is not computed again."
        )
    page = build_report(run)
    _refresh(run)
    console.say(f"Report: {page}")


def _bench(run: Path, *, device: str, trust_remote_code: bool, no_cache: bool, step: Any) -> Bench:
    """Return the bench of a run folder, the finished steps read back."""
    console.quiet_libraries()
    config, sources = read_settings(run), read_sources(run)
    step("loading")
    inputs = sources.prepare(config, device=device, trust_remote_code=trust_remote_code)()
    open_run(sources, inputs, config, run)
    return stages.take_activations(inputs, config, run, on_step=step, cache=None if no_cache else open_cache())


def _refresh(run: Path) -> None:
    """Bring the manifest of a finished run up to date."""
    if (run / MANIFEST).exists():
        finish(run)


__all__ = ["Fixed", "activations", "cleaning", "directions", "edit", "evaluate", "report"]
