"""The SRA study (arXiv 2601.08489) with the controls that the paper lacks: every arm chosen by one rule, scored once on test.

`run` is the table of contents: observe the base, gather materials, choose each arm, score it, trace its curve, match arms at equal
refusal, repeat in passes, sweep lambda, measure ceilings. Each step is kept in the run folder, so a killed run goes on.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from resect import cleaning
from resect.cleaning import atom_term
from resect.config import SRAConfig
from resect.edit.plan import EditPlan
from resect.evaluation import drift
from resect.evaluation.statistics import mean_of, rate
from resect.studies import ceilings, comparisons, curves, passes, scores, selection
from resect.studies.arms import ARMS
from resect.studies.bench import Bench, plan_of, prepare, prove_plan, recipes, score_plan, select_arm, twin_responses
from resect.studies.forecast import forecast, quantities
from resect.studies.inputs import StudyInputs, near_twins
from resect.studies.materials import Materials
from resect.studies.steps import Steps

MAIN_ARM = "sra"


@dataclass(frozen=True, eq=False)
class SRAResult:
    """A finished study: the two JSON documents, the sample rows, and the values that other stages start from.

    `edited` is the arm whose edit the run keeps, `proof` its edit proof.
    """

    evaluation: dict[str, Any]
    study: dict[str, Any]
    samples: list[dict[str, Any]]
    materials: Materials
    cleaned: torch.Tensor
    lam: float
    plans: dict[str, EditPlan]
    edited: str
    proof: dict[str, Any]


def run(inputs: StudyInputs, config: SRAConfig, steps: Steps) -> SRAResult:
    """Return the finished study; steps that the run folder already holds are read back.

    Raises:
        UserError: see `behaviour.observe`, `inputs.gamma_atom` and `models.writers.find_writers`.
    """
    bench = prepare(inputs, config, steps)
    picks = bench.together({arm: partial(select_arm, bench, arm) for arm in config.arms})
    plans = {arm: plan_of(bench, arm, pick) for arm, pick in picks.items()}
    results = bench.together({arm: partial(score_plan, bench, arm, plan) for arm, plan in {"base": EditPlan(()), **plans}.items()})
    traces = bench.together({arm: partial(_trace, bench, arm, pick, results[arm]) for arm, pick in picks.items()})
    lam = selection.chosen(picks[MAIN_ARM]).softness if MAIN_ARM in picks else config.lams[0]
    cleaned = bench.cleaned(lam)
    edited = MAIN_ARM if MAIN_ARM in plans else next(iter(plans))
    return SRAResult(
        lam=lam,
        edited=edited,
        proof=bench.step("edit_proof", prove_plan, plans[edited]),
        evaluation=evaluation_of(bench, results),
        study=_study(bench, picks, results, traces, cleaned=cleaned, lam=lam),
        samples=_samples(bench, results),
        materials=bench.materials,
        cleaned=cleaned,
        plans=plans,
    )


def _trace(bench: Bench, arm: str, pick: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arm's curve; at the chosen strength it is what was scored on test."""
    recipe, choice = bench.chosen(arm, pick)
    scored = curves.scored_point(result, strength=choice.gamma)
    made_of = (recipe, choice, bench.behaviour.on("test"), bench.reference, {choice.gamma: scored})
    return bench.step(f"curve_{arm}", curves.trace, *made_of, settings=curves.SETTINGS)


def evaluation_of(bench: Bench, results: dict[str, Any]) -> dict[str, Any]:
    """Return `evaluation.json` of the arms that were scored."""
    seed = bench.config.seed
    rounded = bench.step("rounding", scores.rounding_alone, bench.behaviour.on("test"), settings=("kl_tokens",))
    # The base is what drift is from: no difference is claimed of it.
    floors = {arm: None if arm == "base" else rounded for arm in results}
    return {
        "format": "resect.evaluation/1",
        "model": bench.inputs.model.name,
        "arms": {arm: scores.summary(result, seed=seed, floors=floors[arm]) for arm, result in results.items()},
        "comparisons": comparisons.compare(results, seed=seed),
    }


def _study(
    bench: Bench, picks: dict[str, Any], results: dict[str, Any], traces: dict[str, Any], *, cleaned: torch.Tensor, lam: float
) -> dict[str, Any]:
    config, seed = bench.config, bench.config.seed
    base = [v == "refuse" for v in bench.behaviour.harmful["test"].verdicts]
    asides = bench.together(
        {
            "passes": partial(_passes, bench, picks),
            "lambda_sweep": partial(_lambda_sweep, bench, picks),
            "forecast": partial(_forecast, bench),
            "twin": partial(_to_twin, bench, picks),
            "ceilings": partial(_ceilings, bench),
        }
    )
    matched = curves.matched(traces, base=base, refusal=config.matched_refusal, pairs=comparisons.pairs(tuple(traces)), seed=seed)
    return {
        "format": "resect.study/1",
        "study": "sra",
        **asides,
        "model": _model(bench),
        "prompts": {**bench.behaviour.counts, "filtered": config.filter_by_behaviour, "near_duplicates": near_twins(bench.inputs)},
        "atoms": [{"name": a.name, "role": a.role} for a in bench.inputs.atoms],
        "arms": {arm: describe_arm(bench, arm, pick) for arm, pick in picks.items()},
        "sources": {arm: selection.by_source(pick, limit=config.max_refusal) for arm, pick in picks.items()},
        "curves": {arm: curves.summary(points, seed=seed) for arm, points in traces.items()},
        "matched": matched,
        "spectrum": _spectrum(bench, cleaned, lam),
        "decomposition": comparisons.decompose(matched, rule=config.gamma_rule),
        "drift_by_topic": {arm: _by_topic(bench, result) for arm, result in results.items() if arm != "base"},
        "drift_quantiles": {arm: _quantiles(result) for arm, result in results.items() if arm != "base"},
        "drift_split": {arm: scores.drift_split(result, seed=seed) for arm, result in results.items() if arm != "base"},
        "judges": {arm: scores.judges(result) for arm, result in results.items()},
        "verdicts": {arm: scores.verdict_counts(result) for arm, result in results.items()},
    }


def _model(bench: Bench) -> dict[str, Any]:
    model = bench.inputs.model
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "architecture": type(model.network).__name__,
        "layers": bench.lab.layers,
        "d_model": model.d_model,
    }


def describe_arm(bench: Bench, arm: str, pick: dict[str, Any]) -> dict[str, Any]:
    """Return how an arm was made and what was chosen for it, as `study.json` holds it."""
    recipe, choice = bench.chosen(arm, pick)
    return {
        "label": ARMS[arm].label,
        "method": ARMS[arm].method,
        "control": ARMS[arm].control,
        "source": "per_layer" if choice.source is None else choice.source,
        "window": [choice.first, choice.last],
        "strength": choice.gamma,
        "softness": choice.softness if ARMS[arm].knob != "none" else None,
        "knob": ARMS[arm].knob.removesuffix("s") if ARMS[arm].knob != "none" else None,
        "rule": choice.rule,
        "profile": recipe.strengths(choice).tolist(),
        "feasible": pick["feasible"],
        "candidates": pick["candidates"],
        "dropped": pick["dropped"],
        "validation": pick["validation"],
    }


def _spectrum(bench: Bench, cleaned: torch.Tensor, lam: float) -> dict[str, Any]:
    materials = bench.materials
    term = atom_term(materials.kept_atoms, lam=lam, scaling=bench.config.atom_scaling)
    found = cleaning.spectrum(materials.raw, cleaned, term=term, all_atoms=materials.atoms)
    return {
        "singular_values": found.singular_values.tolist(),
        "filter": found.filter_factor.tolist(),
        "r_squared": found.r_squared.tolist(),
        "cosine_before": found.cosine_before.tolist(),
        "cosine_after": found.cosine_after.tolist(),
    }


def _forecast(bench: Bench) -> dict[str, Any]:
    """Return the forecast for the raw direction and SRA at every place that validation tries; at flat strength if SRA is no arm."""
    clean = MAIN_ARM if MAIN_ARM in bench.config.arms else "sra_flat"
    plans = {}
    for arm in ("standard", clean):
        made = recipes(bench, arm)
        plans[arm] = [made[c.softness].plan(bench.lab.writers, c) for c in selection.grid(bench.lab, made)]
    known = quantities(bench.materials, bench.cleaned(min(bench.config.lams)))
    return bench.step("forecast", forecast, bench.behaviour.on("validation"), plans["standard"], plans[clean], known)


def _passes(bench: Bench, picks: dict[str, Any]) -> list[dict[str, Any]]:
    if MAIN_ARM not in picks:
        return []
    made_of = (*bench.chosen(MAIN_ARM, picks[MAIN_ARM]), bench.materials, bench.behaviour.on("extract", "test"), bench.reference)
    return bench.step("passes", passes.run_passes, *made_of, settings=passes.SETTINGS)


def _lambda_sweep(bench: Bench, picks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return SRA's validation figures over lambda, at the source, window and strength that validation chose."""
    if MAIN_ARM not in picks:
        return []
    choice, raw = selection.chosen(picks[MAIN_ARM]), bench.materials.raw
    rows = []
    for lam in sorted(bench.config.lam_sweep):
        made = {lam: bench.recipe(MAIN_ARM, lam)}
        tried = replace(choice, softness=lam)
        known = (made, tried, bench.behaviour.on("validation"))
        figures = bench.step(f"lambda_{lam:g}", selection.validate, *known, settings=selection.READING)
        cosine = torch.nn.functional.cosine_similarity(made[lam].vectors, raw, dim=-1).mean().item()
        rows.append({"lambda": lam, **figures, "cosine_with_raw": cosine})
    return rows


def _by_topic(bench: Bench, result: dict[str, Any]) -> dict[str, Any]:
    prompts = bench.behaviour.harmless["test"].prompts.prompts
    return scores.by_topic(result["kl_first_token"], prompts, unit="nats", seed=bench.config.seed)


def _quantiles(result: dict[str, Any]) -> dict[str, Any]:
    spread = drift.quantiles(torch.tensor(result["kl_first_token"], dtype=torch.float64))
    return {**asdict(spread), "top1_flips": rate(result["top1_flips"]).to_json()}


def _to_twin(bench: Bench, picks: dict[str, Any]) -> dict[str, Any] | None:
    if bench.reference.twin is None:
        return None
    plans = {"base": EditPlan(()), **{arm: plan_of(bench, arm, pick) for arm, pick in picks.items()}}
    rows = bench.step("kl_to_twin", scores.kl_to_twin, plans, bench.reference, settings=("kl_tokens",))
    return {arm: mean_of(row, unit="nats per token", seed=bench.config.seed).to_json() for arm, row in rows.items()}


def _ceilings(bench: Bench) -> dict[str, Any] | None:
    twin = bench.inputs.twin
    if twin is None or not bench.config.ceilings:
        return None
    said = twin_responses(bench.lab, bench.inputs, bench.steps, "validation")
    return bench.step("ceilings", ceilings.measure, twin, bench.behaviour, bench.reference, said, settings=ceilings.SETTINGS)


def _samples(bench: Bench, results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row
        for arm, result in results.items()
        for side, asked in (("harmful", bench.behaviour.harmful["test"]), ("harmless", bench.behaviour.harmless["test"]))
        for row in scores.sample_rows(arm, side, asked.prompts, result[side])
    ]
