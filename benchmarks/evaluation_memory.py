"""Peak memory of an evaluation on a suite, with an edit put on, beside what is predicted and beside the weights.

    python benchmarks/evaluation_memory.py                   # in float32
    python benchmarks/evaluation_memory.py --dtype bfloat16

The model is random, of more than 1 GB in float32, with a vocabulary of 150,000 tokens. The whole evaluation (two arms, two judges, drift,
answers) runs in a process of its own; the peak is its resident set as Linux counts it from after loading, less what the process held
before. Bars: the peak is within 15 % of the prediction, and under 1.3 times the weights plus what is predicted beside the weights.
Writes benchmarks/results/evaluation_memory.json; the last line is JSON.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import CONFIG, held, make
from transformers import Qwen3Config

from resect.commands.memory import MAX_LOGITS
from resect.config import SRAConfig
from resect.edit import hooks
from resect.edit.plan import make_plan
from resect.evaluation.judges import LogOddsJudge, MarkerJudge
from resect.evaluation.refusal import RefusalTokens
from resect.models import memory
from resect.models.evaluation_memory import evaluation_stage
from resect.models.load import load_model
from resect.models.memory import Workload
from resect.models.writers import find_writers
from resect.prompts import Prompt, PromptSet
from resect.prompts.suite import Suite
from resect.studies.steps import Steps
from resect.studies.suite import Arm, Named, Subject, run

RESULTS = Path(__file__).parent / "results" / "evaluation_memory.json"
SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 10, "layer_types": None}
LARGE = Qwen3Config(**CONFIG.to_dict() | SHAPE)
SIDE, TOKENS, NEW, KL = 16, 48, 4, 16
BAND = 0.15


def suite() -> Suite:
    def prompts(start: int) -> tuple[Prompt, ...]:
        rows = [" ".join(f"t{1 + (start + 7 * i + j) % 900}" for j in range(TOKENS)) for i in range(SIDE)]
        return tuple(Prompt(text, response=" ".join(f"t{2 + (start + i + j) % 900}" for j in range(KL))) for i, text in enumerate(rows))

    sets = [PromptSet(kind, prompts(start)) for start, kind in enumerate(("harmful", "harmless", "question"))]
    return Suite(*sets, grades=(None,) * SIDE, texts=())


def predicted(network: Any) -> dict[str, int]:
    work = Workload((TOKENS,) * SIDE, SRAConfig().batch_tokens, NEW, 0, 0, 0, 0, KL + 1, MAX_LOGITS, 0, 0)
    return {"weights": memory.weight_bytes(network), "predicted": evaluation_stage(network, work, on_cpu=True).device}


def measure(folder: Path) -> None:
    """Print, in a process of its own, what is held before anything is loaded, and the peak of the evaluation."""
    before = held("VmRSS")
    model = load_model(folder, device="cpu")
    writers = find_writers(model)
    vectors = torch.randn(len(model.blocks), 1, model.d_model, generator=torch.Generator().manual_seed(0))
    plan = make_plan(writers, vectors, torch.ones(len(model.blocks)))
    config = SRAConfig(max_new_tokens=NEW, kl_tokens=KL)
    subjects = {"base": Subject(model), "edited": Subject(model, partial(hooks.applied, model, writers, plan))}
    arms = {name: Arm(subject, suite(), config) for name, subject in subjects.items()}
    tokens = RefusalTokens((5, 6), 1.0, 0.0)
    judges = (Named("markers", lambda _: MarkerJudge(), ""), Named("log_odds", lambda arm: LogOddsJudge(arm.first_logprobs, tokens), ""))
    # What loading left behind in the allocator is no memory of the evaluation.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    results = run(arms, judges, Steps(folder.parent / "out"), refusal_tokens=lambda: tokens.ids)
    assert len(results["edited"]["drift"]["kl"]) > SIDE
    print(json.dumps({"before": before, "after": held("VmHWM")}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--measure", type=Path)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return
    dtype = getattr(torch, given.dtype)
    row = predicted(memory.without_weights(LARGE, dtype=dtype))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make(folder, dtype, LARGE)
        done = subprocess.run([sys.executable, __file__, "--measure", str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    row["measured"] = found["after"] - found["before"]
    row["imports"] = found["before"]
    limit = 1.3 * row["weights"] + row["predicted"] - row["weights"]
    report = row | {"ratio": round(row["predicted"] / row["measured"], 3), "limit": round(limit)}
    report |= {"within_15_percent": abs(report["ratio"] - 1) <= BAND, "under_limit": row["measured"] <= limit}
    for name in ("weights", "measured", "predicted", "limit"):
        print(f"{name:<12}{report[name] / 1e6:>10.0f} MB")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(kept | {given.dtype: report}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps({"dtype": given.dtype} | report))


if __name__ == "__main__":
    main()
