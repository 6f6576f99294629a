"""The SRA study (arXiv 2601.08489) with the controls that the paper lacks: every arm chosen by one rule, scored once on test.

`run` is the table of contents: observe the base, gather materials, choose each arm, score it, trace its curve, match arms at equal
refusal, repeat in passes, sweep lambda, measure ceilings. Each step is kept in the run folder, so a killed run goes on.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from resect import cleaning
from resect.cleaning import atom_term
from resect.config import SRAConfig
from resect.edit import proof
from resect.edit.plan import EditPlan
from resect.evaluation import drift
from resect.evaluation.statistics import rate
from resect.studies import ceilings, comparisons, curves, passes, scores, selection
from resect.studies.arms import ARMS, Choice, Recipe, needs_energy, recipe, softnesses
from resect.studies.behaviour import Behaviour, observe
from resect.studies.forecast import forecast
from resect.studies.inputs import StudyInputs, gamma_atom, near_twins
from resect.studies.lab import Lab
from resect.studies.materials import Materials, gather
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


@dataclass(frozen=True, eq=False)
class Bench:
    """What all steps share: the model with its behaviour and materials, and what edits of it are compared with."""

    lab: Lab
    inputs: StudyInputs
    behaviour: Behaviour
    materials: Materials
    reference: scores.Reference
    steps: Steps
    gamma_atom: str

    @property
    def config(self) -> SRAConfig:
        """The settings of the study."""
        return self.lab.config

    def recipe(self, arm: str, softness: float) -> Recipe:
        """Return an arm's direction and profile at a softness of the cleaning."""
        return recipe(ARMS[arm], self.materials, self.config, softness=softness, gamma_atom=self.gamma_atom)

    def chosen(self, arm: str, pick: dict[str, Any]) -> tuple[Recipe, Choice]:
        """Return an arm's recipe and choice as selection stored them."""
        choice = selection.chosen(pick)
        return self.recipe(arm, choice.softness), choice


def run(inputs: StudyInputs, config: SRAConfig, steps: Steps) -> SRAResult:
    """Return the finished study; steps that the run folder already holds are read back.

    Raises:
        UserError: see `behaviour.observe`, `inputs.gamma_atom` and `models.writers.find_writers`.
    """
    bench = prepare(inputs, config, steps)
    picks = {arm: steps.json(f"selection_{arm}", lambda a=arm: select_arm(bench, a)) for arm in config.arms}
    plans = {arm: plan_of(bench, arm, pick) for arm, pick in picks.items()}
    results = {arm: steps.json(f"test_{arm}", lambda p=plan: score_plan(bench, p)) for arm, plan in {"base": EditPlan(()), **plans}.items()}
    traces = {arm: steps.json(f"curve_{arm}", lambda a=arm, p=pick: _trace(bench, a, p)) for arm, pick in picks.items()}
    lam = selection.chosen(picks[MAIN_ARM]).softness if MAIN_ARM in picks else config.lams[0]
    cleaned = bench.recipe(MAIN_ARM, lam).vectors
    edited = MAIN_ARM if MAIN_ARM in plans else next(iter(plans))
    return SRAResult(
        lam=lam,
        edited=edited,
        proof=steps.json("edit_proof", lambda: prove_plan(bench, plans[edited])),
        evaluation=evaluation_of(bench, results),
        study=_study(bench, picks, results, traces, cleaned=cleaned, lam=lam),
        samples=_samples(bench, results),
        materials=bench.materials,
        cleaned=cleaned,
        plans=plans,
    )


def prepare(inputs: StudyInputs, config: SRAConfig, steps: Steps) -> Bench:
    """Return the bench: the base observed, the materials gathered; raises what `run` raises."""
    lab = Lab(inputs.model, config)
    atom = gamma_atom(inputs, config) if needs_energy(config) else ""
    behaviour = observe(lab, inputs, steps)
    materials = gather(lab, inputs, behaviour, steps)
    twin_ids = None
    if inputs.twin is not None:
        twin_ids = steps.json("twin_test", lambda: _twin_ids(lab, inputs, inputs.harmful.test))
    return Bench(lab, inputs, behaviour, materials, scores.reference(lab, inputs, behaviour, twin_ids), steps, atom)


def _twin_ids(lab: Lab, inputs: StudyInputs, prompts: Any) -> list[list[int]]:
    return [list(r.ids) for r in lab.respond(prompts, max_new_tokens=lab.config.max_new_tokens, model=inputs.twin)]


def select_arm(bench: Bench, arm: str) -> dict[str, Any]:
    """Return what validation chose for an arm, as `selection.select` stores it."""
    recipes = {softness: bench.recipe(arm, softness) for softness in softnesses(ARMS[arm], bench.config)}
    return selection.select(bench.lab, recipes, bench.behaviour)


def plan_of(bench: Bench, arm: str, pick: dict[str, Any]) -> EditPlan:
    """Return the edit that validation chose for an arm."""
    recipe, choice = bench.chosen(arm, pick)
    return recipe.plan(bench.lab.writers, choice)


def score_plan(bench: Bench, plan: EditPlan) -> dict[str, Any]:
    """Return an edit's test results, prompt by prompt."""
    return scores.score(bench.lab, bench.inputs, bench.behaviour, bench.reference, plan)


def prove_plan(bench: Bench, plan: EditPlan) -> dict[str, Any]:
    """Return the edit proof of a plan applied by hooks, as a study applies it."""
    lab = bench.lab
    before = proof.observe(lab.model, lab.writers, plan)
    with lab.edited(plan):
        return proof.prove(lab.model, lab.writers, plan, before=before).to_json()


def _trace(bench: Bench, arm: str, pick: dict[str, Any]) -> list[dict[str, Any]]:
    recipe, choice = bench.chosen(arm, pick)
    return curves.trace(bench.lab, recipe, choice, bench.behaviour, bench.reference)


def evaluation_of(bench: Bench, results: dict[str, Any]) -> dict[str, Any]:
    """Return `evaluation.json` of the arms that were scored."""
    seed = bench.config.seed
    return {
        "format": "resect.evaluation/1",
        "model": bench.inputs.model.name,
        "arms": {arm: scores.summary(result, seed=seed) for arm, result in results.items()},
        "comparisons": comparisons.compare(results, seed=seed),
    }


def _study(
    bench: Bench, picks: dict[str, Any], results: dict[str, Any], traces: dict[str, Any], *, cleaned: torch.Tensor, lam: float
) -> dict[str, Any]:
    config, seed = bench.config, bench.config.seed
    base = [v == "refuse" for v in bench.behaviour.harmful["test"].verdicts]
    matched = curves.matched(traces, base=base, refusal=config.matched_refusal, pairs=comparisons.pairs(tuple(traces)), seed=seed)
    return {
        "format": "resect.study/1",
        "study": "sra",
        "model": _model(bench),
        "prompts": {**bench.behaviour.counts, "filtered": config.filter_by_behaviour, "near_duplicates": near_twins(bench.inputs)},
        "atoms": [{"name": a.name, "role": a.role} for a in bench.inputs.atoms],
        "arms": {arm: describe_arm(bench, arm, pick) for arm, pick in picks.items()},
        "sources": {arm: selection.by_source(pick, limit=config.max_refusal) for arm, pick in picks.items()},
        "curves": {arm: curves.summary(points, seed=seed) for arm, points in traces.items()},
        "matched": matched,
        "spectrum": _spectrum(bench, cleaned, lam),
        "passes": bench.steps.json("passes", lambda: _passes(bench, picks)) if MAIN_ARM in picks else [],
        "lambda_sweep": _lambda_sweep(bench, picks),
        "decomposition": comparisons.decompose(matched, rule=config.gamma_rule),
        "forecast": forecast(bench.materials, bench.recipe(MAIN_ARM, min(config.lams)).vectors, lam=min(config.lams)),
        "drift_by_topic": {arm: _by_topic(bench, result) for arm, result in results.items() if arm != "base"},
        "drift_quantiles": {arm: _quantiles(result) for arm, result in results.items() if arm != "base"},
        "ceilings": _ceilings(bench),
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


def _passes(bench: Bench, picks: dict[str, Any]) -> list[dict[str, Any]]:
    recipe, choice = bench.chosen(MAIN_ARM, picks[MAIN_ARM])
    return passes.run_passes(bench.lab, recipe, choice, materials=bench.materials, behaviour=bench.behaviour, reference=bench.reference)


def _lambda_sweep(bench: Bench, picks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return SRA's validation figures over lambda, at the source, window and strength that validation chose."""
    if MAIN_ARM not in picks:
        return []
    choice, raw = selection.chosen(picks[MAIN_ARM]), bench.materials.raw
    rows = []
    for lam in sorted(bench.config.lam_sweep):
        recipes = {lam: bench.recipe(MAIN_ARM, lam)}
        tried = replace(choice, softness=lam)
        figures = bench.steps.json(f"lambda_{lam:g}", lambda r=recipes, c=tried: selection.figures(bench.lab, r, c, bench.behaviour))
        cosine = torch.nn.functional.cosine_similarity(recipes[lam].vectors, raw, dim=-1).mean().item()
        rows.append({"lambda": lam, **figures, "cosine_with_raw": cosine})
    return rows


def _by_topic(bench: Bench, result: dict[str, Any]) -> dict[str, Any]:
    prompts = bench.behaviour.harmless["test"].prompts.prompts
    return scores.by_topic(result["kl_first_token"], prompts, unit="nats", seed=bench.config.seed)


def _quantiles(result: dict[str, Any]) -> dict[str, Any]:
    spread = drift.quantiles(torch.tensor(result["kl_first_token"], dtype=torch.float64))
    return {**asdict(spread), "top1_flips": rate(result["top1_flips"]).to_json()}


def _ceilings(bench: Bench) -> dict[str, Any] | None:
    twin = bench.inputs.twin
    if twin is None or not bench.config.ceilings:
        return None
    lab, behaviour, reference = bench.lab, bench.behaviour, bench.reference
    validation = bench.inputs.harmful.validation
    twin_validation = lab.read(validation.prompts, bench.steps.json("twin_validation", lambda: _twin_ids(lab, bench.inputs, validation)))
    return bench.steps.json(
        "ceilings",
        lambda: {
            "oracle": ceilings.oracle(lab, twin, behaviour, reference, twin_validation),
            "layer_revert": ceilings.layer_revert(lab, twin, behaviour, reference),
        },
    )


def _samples(bench: Bench, results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row
        for arm, result in results.items()
        for side, asked in (("harmful", bench.behaviour.harmful["test"]), ("harmless", bench.behaviour.harmless["test"]))
        for row in scores.sample_rows(arm, side, asked.prompts, result[side])
    ]
