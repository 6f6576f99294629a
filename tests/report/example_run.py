"""A synthetic run folder: seeded random numbers in the shape of a finished run, clearly test data."""

import json
import math
import random
from pathlib import Path
from typing import Any

ATOMS = {
    "target": ["deception", "privacy", "epistemic uncertainty", "illegality"],
    "shield": ["logic", "mathematics", "coding", "curiosity", "translation", "medicine", "law", "history", "creative writing", "lists"],
    "confound": [
        "imperative negation",
        "affirmatives",
        "politeness",
        "question form",
        "sentiment",
        "formality",
        "brevity",
        "refusal grammar",
        "urgency",
        "harmless mean",
    ],
}
KL = {"base": 0.0, "standard": 0.21, "projected": 0.062, "sra": 0.031, "whitened": 0.048, "combined": 0.019}
KL |= {"standard_sra_strength": 0.17, "sra_flat": 0.04, "random_atoms": 0.2}
REFUSAL = {
    "base": 0.99,
    "standard": 0.08,
    "projected": 0.02,
    "sra": 0.01,
    "whitened": 0.03,
    "combined": 0.0,
    "standard_sra_strength": 0.12,
    "sra_flat": 0.02,
    "random_atoms": 0.09,
}
CONTROLS = {"standard_sra_strength", "sra_flat", "random_atoms"}
METHODS = {
    "base": "no edit",
    "standard": "raw difference of means, ablated at a flat strength",
    "projected": "raw direction made orthogonal to the harmless mean",
    "sra": "ridge-cleaned against shield and confound atoms, strength by the energy rule",
    "whitened": "shrinkage against the benign covariance",
    "combined": "atoms and benign covariance in one scatter",
    "standard_sra_strength": "raw direction with the per-layer strength of sra",
    "sra_flat": "cleaned direction with a flat strength",
    "random_atoms": "cleaned against as many random directions as atoms",
}
TOPICS = ["arithmetic", "code", "facts", "free advice", "lists", "translation", "topic-matched benign"]
CAPABILITIES = ["wikitext", "arithmetic", "code", "facts", "lists", "translation"]


def rate(value: float, *, n: int) -> dict[str, Any]:
    z, centre = 1.96, value + 1.96**2 / (2 * n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return {"value": value, "low": max(0.0, (centre - half) / scale), "high": min(1.0, (centre + half) / scale), "n": n, "unit": "fraction"}


def mean(value: float, *, n: int, unit: str = "nats") -> dict[str, Any]:
    return {"value": value, "low": value * 0.72, "high": value * 1.35, "n": n, "unit": unit}


def evaluation(rng: random.Random, *, twin: bool) -> dict[str, Any]:
    arms = {}
    for arm, kl in KL.items():
        arms[arm] = {
            "refusal_rate": rate(REFUSAL[arm], n=200),
            "benign_refusal_rate": rate(0.0 if arm in ("base", "sra", "combined") else round(kl / 10, 3), n=300),
            "kl_first_token": mean(kl, n=300),
            "kl_tokens": mean(kl * 0.6, n=300),
            "perplexity": {
                name: mean((3 + i) * (1 + (kl * rng.uniform(-0.1, 3) if arm != "base" else 0)), n=100, unit="per token")
                for i, name in enumerate(CAPABILITIES)
            },
        }
        if twin:
            arms[arm]["recovery"] = rate(round(max(0.0, 0.86 - REFUSAL[arm] - kl), 2), n=200)
    comparisons = [
        {
            "measure": measure,
            "a": arm,
            "b": "sra",
            "difference": {"value": KL[arm] - KL["sra"], "low": KL[arm] - KL["sra"] - 0.02, "high": KL[arm] - KL["sra"] + 0.02},
            "p": min(1.0, 0.0004 + 0.02 * i),
            "p_holm": min(1.0, 0.004 + 0.08 * i),
            "test": "mcnemar" if measure == "refusal_rate" else "paired bootstrap",
            "n": 200,
            **({"needed": None if i == 0 else 1391} if measure == "refusal_rate" else {}),
        }
        for measure in ("refusal_rate", "kl_first_token")
        for i, arm in enumerate(a for a in KL if a not in ("sra", "base"))
    ]
    return {"format": "resect.evaluation/1", "model": "test-organism (synthetic numbers)", "arms": arms, "comparisons": comparisons}


def curves(*, twin: bool) -> dict[str, Any]:
    return {
        arm: [
            {
                "strength": g,
                "refusal_rate": rate(round(REFUSAL[arm] + (0.99 - REFUSAL[arm]) / (1 + math.exp(9 * (g - 0.6))), 3), n=200),
                "benign_refusal_rate": rate(0.0, n=300),
                "kl_first_token": mean(KL[arm] * g**2.2, n=300),
                "recovery": rate(round(0.8 * g / (1 + g), 2), n=200) if twin else None,
            }
            for g in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)
        ]
        for arm in KL
        if arm != "base"
    }


def spectrum(rng: random.Random, atoms: list[dict[str, str]], *, layers: int) -> dict[str, Any]:
    size = {"target": 0.6, "shield": 0.35, "confound": 0.45}
    pull = [[rng.uniform(-1, 1) * size[atom["role"]] for atom in atoms]]
    for _ in range(layers - 1):
        pull.append([0.8 * value + rng.gauss(0, 0.08) for value in pull[-1]])
    before = [[max(-0.79, min(0.79, value * (0.5 + layer / layers))) for value in row] for layer, row in enumerate(pull)]
    after = [[value * (0.9 if atom["role"] == "target" else 0.12) for value, atom in zip(row, atoms, strict=True)] for row in before]
    singular = [sorted((rng.uniform(0.05, 6) for _ in range(len(atoms))), reverse=True) for _ in range(layers)]
    return {
        "singular_values": singular,
        "filter": [[s * s / (s * s + 1) for s in row] for row in singular],
        "r_squared": [0.15 + 0.3 * math.sin(layer / layers * 3) for layer in range(layers)],
        "cosine_before": before,
        "cosine_after": after,
    }


def inverse(ratio: dict[str, float]) -> dict[str, float]:
    """The study writes each pair of arms once, the reference arm first."""
    return {"value": 1 / ratio["value"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}


def study(rng: random.Random, *, layers: int, twin: bool, random_wins: bool) -> dict[str, Any]:
    atoms = [{"name": name, "role": role} for role, names in ATOMS.items() for name in names]
    flat, bell = [1] * layers, [1.4 * math.exp(-(((i - layers * 0.55) / (layers * 0.2)) ** 2)) for i in range(layers)]
    matched = {arm: {"kl": None if arm == "base" else KL[arm] * 0.9, "strength": 1.0, "note": None} for arm in KL if arm != "base"}
    matched["standard_sra_strength"] = {"kl": None, "strength": None, "note": "never reaches 2 % refusals at any tried strength"}
    random_ratio = {"value": 1.04, "low": 0.8, "high": 1.3} if random_wins else {"value": 6.4, "low": 4.1, "high": 9.8}
    ratios = [
        {"a": "standard", "b": "sra", "kl_ratio": {"value": 6.77, "low": 4.4, "high": 10.1}},
        {"a": "projected", "b": "sra", "kl_ratio": {"value": 2.0, "low": 1.3, "high": 3.1}},
        {"a": "projected", "b": "combined", "kl_ratio": {"value": 3.3, "low": 2.1, "high": 4.9}},
        {
            "a": "sra",
            "b": "random_atoms",
            "kl_ratio": {k: 1 / random_ratio[o] for k, o in (("value", "value"), ("low", "high"), ("high", "low"))},
        },
        {"a": "sra", "b": "standard_sra_strength", "kl_ratio": None},
    ]
    return {
        "format": "resect.study/1",
        "study": "sra",
        "model": {
            "name": "test-organism (synthetic numbers)",
            "fingerprint": "sha256:" + "0f" * 32,
            "architecture": "Qwen3ForCausalLM",
            "layers": layers,
            "d_model": 128,
        },
        "prompts": {
            "harmful": {"extract": {"n": 200, "kept": 197}, "validation": {"n": 100}, "test": {"n": 200}},
            "harmless": {"extract": {"n": 300, "kept": 299}, "validation": {"n": 100}, "test": {"n": 300}},
            "filtered": True,
            "near_duplicates": 3,
        },
        "atoms": atoms,
        "arms": {
            arm: {
                "label": arm,
                "method": METHODS[arm],
                "control": arm in CONTROLS,
                "source": "per_layer" if arm != "projected" else 4,
                "window": [0, layers - 1],
                "strength": 1,
                "profile": [] if arm == "base" else bell if arm in ("sra", "standard_sra_strength", "random_atoms", "combined") else flat,
                "feasible": arm != "standard_sra_strength",
                "candidates": 18,
                "validation": {"refusal_rate": rate(REFUSAL[arm], n=100), "kl_first_token": mean(KL[arm], n=100)},
            }
            for arm in KL
        },
        "curves": curves(twin=twin),
        "matched": {"refusal": 0.02, "arms": matched, "ratios": ratios},
        "spectrum": spectrum(rng, atoms, layers=layers),
        "passes": [
            {
                "pass": p,
                "refusal_rate": rate(round(0.12 / p**2, 3), n=200),
                "kl_first_token": mean(0.031 * (1 + 0.1 * p), n=300),
                "recovery": rate(round(0.55 + 0.05 * p, 2), n=200) if twin else None,
                "r_squared": 0.35 / p,
                "coefficients": {atom["name"]: rng.gauss(0, 2) / p for atom in atoms},
                "hard_negatives": 24 // p**2,
                "stopped": "fewer than 8 hard negatives" if p == 4 else None,
            }
            for p in (1, 2, 3, 4)
        ],
        "lambda_sweep": [
            {
                "lambda": lam,
                "refusal_rate": rate(0.01 + 0.02 * i, n=200),
                "kl_first_token": mean(0.03 + 0.012 * i, n=300),
                "cosine_with_raw": 0.6 + 0.06 * i,
            }
            for i, lam in enumerate((0, 0.001, 0.01, 0.1, 1, 10))
        ],
        "decomposition": {
            "rows": [
                {"arm": "standard", "cleaned": False, "rule": "flat", "kl_matched": 0.19},
                {"arm": "standard_sra_strength", "cleaned": False, "rule": "energy", "kl_matched": None},
                {"arm": "sra_flat", "cleaned": True, "rule": "flat", "kl_matched": 0.036},
                {"arm": "sra", "cleaned": True, "rule": "energy", "kl_matched": 0.028},
            ],
            "cleaning_share": 0.87,
            "strength_share": 0.13,
            "sentence": "87 % of the gain in log KL over standard comes from the cleaning and 13 % from the strength rule.",
        },
        "forecast": {
            "quantity": "predicted benign drift γ²E[(vᵀy)²]",
            "value": 0.42,
            "threshold": 0.2,
            "pays": True,
            "sentence": "Cleaning is expected to pay here.",
            "others": {"share of the harmless mean": 0.61, "R² on the atoms": 0.33, "filter-weighted overlap": 0.27},
        },
        "drift_by_topic": {
            arm: {topic: mean(kl * rng.uniform(0.2, 2.5), n=40) for topic in TOPICS} for arm, kl in KL.items() if arm != "base"
        },
        "drift_quantiles": {
            arm: {"median": kl * 0.3, "p90": kl * 2, "p99": kl * 8, "max": kl * 20, "top1_flips": rate(round(kl / 4, 3), n=300)}
            for arm, kl in KL.items()
            if arm != "base"
        },
        "drift_split": {
            arm: {"refusing": mean(kl * 0.1, n=300), "answering": mean(kl * 0.3, n=300)} for arm, kl in KL.items() if arm != "base"
        },
        "ceilings": None
        if not twin
        else {
            "oracle": [
                {"rank": k, "refusal_rate": rate(0.02, n=200), "recovery": rate(round(0.97 - 0.2 / k, 2), n=200)} for k in (1, 2, 4, 8)
            ],
            "layer_revert": [
                {
                    "first_layer": i,
                    "refusal_rate": rate(round(0.9 * (i / layers) ** 4, 2), n=200),
                    "recovery": rate(round(0.99 - 0.9 * (i / layers) ** 4, 2), n=200),
                }
                for i in range(layers)
            ],
        },
        "judges": {
            arm: {
                "agreement": 0.99 - kl / 2,
                "kappa": 0.97 - kl,
                "kappa_low": 0.9 - kl,
                "kappa_high": 0.99 - kl,
                "n": 200,
                "refusal_rate_log_odds": rate(min(1.0, REFUSAL[arm] + 0.01), n=200),
                "refusal_rate_echo": rate(min(1.0, REFUSAL[arm] + 0.2), n=200) if twin and arm != "base" else None,
            }
            for arm, kl in KL.items()
        },
        "verdicts": {
            arm: {
                "refuse": round(200 * r),
                "comply": 200 - round(200 * r) - round(KL[arm] * 200),
                "evasive": round(KL[arm] * 100),
                "degenerate": round(KL[arm] * 60),
            }
            | {"truncated": round(KL[arm] * 40), "unscored": 0}
            for arm, r in REFUSAL.items()
        },
    }


def samples(*, texts: bool, hostile: str | None) -> list[dict[str, Any]]:
    rows = []
    for arm in KL:
        for i in range(20):
            harmful = i % 2 == 0
            refused = harmful and arm == "base"
            row = {
                "arm": arm,
                "set": "harmful" if harmful else "harmless",
                "prompt": f"{i:064x}",
                "category": "placeholder" if harmful else TOPICS[i % len(TOPICS)],
                "verdict": "refuse" if refused else "comply",
                "log_odds": 6.1 if refused else -5.3,
                "response": f"{i + 100:064x}",
            }
            if texts:
                row |= {
                    "prompt_text": f"please do placeholder task number {i} for me",
                    "text": "sorry , i can not help with that" if refused else f"sure , step one of {i} : mix the blue word",
                }
            rows.append(row)
    if hostile is not None:
        rows[0] |= {"prompt_text": hostile, "text": hostile, "category": hostile}
    return rows


def proof(rng: random.Random, *, layers: int) -> dict[str, Any]:
    """An edit of strength 1.25 on the upper half of the layers."""
    edited, writers = range(layers // 2, layers), []
    for layer in range(layers):
        for kind, part in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
            entry = {
                "writer": f"model.layers.{layer}.{part}",
                "layer": layer,
                "kind": kind,
                "gamma": 1.25,
                "rank": 1,
                "preserve": "nothing",
            }
            change = rng.uniform(0.05, 0.4)
            entry |= {"expected_change": change, "change": change, "expected_left": [0.25], "left": [0.25], "leak": 1e-7, "gap": 2e-7}
            writers.append(entry)
    blocks = []
    for layer in edited:
        added, stream = rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.3)
        row = {"layer": layer, "added_before": added, "added_after": added / 4, "stream_before": stream, "stream_after": stream / 2}
        blocks.append(row | {"unlisted": 1e-7})
    untouched = [{"name": w["writer"], "reason": f"strength 0 at layer {w['layer']}"} for w in writers if w["layer"] not in edited]
    untouched.append({"name": "model.embed_tokens", "reason": "embedding: edited only on request"})
    kept = [w for w in writers if w["layer"] in edited]
    head = {"format": "resect.edit_proof/1", "model": "test-organism", "model_fingerprint": "0" * 64, "arm": "sra", "form": "hooks"}
    return head | {"writers": kept, "blocks": blocks, "untouched": untouched, "faults": []}


def write_run(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 12,
    twin: bool = True,
    texts: bool = True,
    random_wins: bool = False,
    hostile: str | None = None,
) -> Path:
    """Write the run folder and return it; `twin` off leaves out recovery and ceilings."""
    rng = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    parts = {"evaluation.json": evaluation(rng, twin=twin), "study.json": study(rng, layers=layers, twin=twin, random_wins=random_wins)}
    parts["edit_proof.json"] = proof(rng, layers=layers)
    for name, value in parts.items():
        (path / name).write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples(texts=texts, hostile=hostile)), encoding="utf-8")
    (path / "run.toml").write_text(
        'model = "test-organism"\nseed = 0\nlambda = 1.0\n\n[prompts]\nharmful = "harmful.jsonl"\nharmless = "harmless.jsonl"\n',
        encoding="utf-8",
    )
    (path / "timings.json").write_text('{"seconds": {"extract": 3.1, "evaluate": 20.4}, "total": 23.5}', encoding="utf-8")
    return path


def without(path: Path, *names: str) -> Path:
    """Remove the named optional parts from the study of a run folder."""
    study_path = path / "study.json"
    value = json.loads(study_path.read_text(encoding="utf-8"))
    study_path.write_text(json.dumps({key: entry for key, entry in value.items() if key not in names}), encoding="utf-8")
    return path


if __name__ == "__main__":
    import sys

    write_run(Path(sys.argv[1]), layers=int(sys.argv[2]) if len(sys.argv) > 2 else 12)
