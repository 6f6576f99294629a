"""Peak memory of load, capture, generation, scoring and saving, measured in a process each, beside what is predicted without weights.

    python benchmarks/memory.py                     # in float32
    python benchmarks/memory.py --dtype bfloat16

The model is random, of 0.7 GB in float32, with a vocabulary of 150,000 tokens. Peaks are resident sets as Linux counts them, less
what the process holds once everything is imported. Prints a table, writes benchmarks/results/memory_DTYPE.json; the last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from resect.activations import capture
from resect.commands.memory import MAX_LOGITS
from resect.edit.save import save_edited
from resect.evaluation.logprobs import next_token_logprobs
from resect.generation import respond
from resect.models import memory
from resect.models.chat import Rendered
from resect.models.load import ChatModel, load_model
from resect.models.memory import Workload

PROMPTS, TOKENS, NEW = 16, 128, 8
RESULTS = Path(__file__).parent / "results"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
CONFIG = Qwen3Config(
    vocab_size=150_000,
    hidden_size=768,
    intermediate_size=2304,
    num_hidden_layers=8,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
WORK = Workload(
    tokens=(TOKENS,) * PROMPTS,
    batch_tokens=8192,
    new_tokens=NEW,
    captured=PROMPTS,
    observed=PROMPTS,
    learnt=0,
    scored=0,
    forced=1,
    logits_at_once=MAX_LOGITS,
    backward_tokens=1024,
    followed=1,
)


def prompts() -> list[Rendered]:
    return [Rendered(range(10, 10 + TOKENS)) for _ in range(PROMPTS)]


def action(name: str, model: ChatModel, folder: Path) -> object:
    actions: dict[str, Callable[[], object]] = {
        "load": lambda: None,
        "capture": lambda: capture(model, prompts()),
        "generation": lambda: respond(model, prompts(), max_new_tokens=NEW),
        "scoring": lambda: next_token_logprobs(model, prompts()),
        "save": lambda: save_edited(model, folder / "saved", card="benchmark"),
    }
    return actions[name]()


def predicted(network: Any) -> dict[str, int]:
    weights = memory.weight_bytes(network)
    stage = memory.capture_stage(network, WORK)
    kept = PROMPTS * CONFIG.vocab_size * 4
    return {
        "load": weights,
        "capture": weights + stage.device + stage.host,
        "generation": weights + max(memory.generation_bytes(network, *shape, new=NEW, on_cpu=True) for shape in memory.shapes(WORK)),
        "scoring": weights + memory.scoring_bytes(network, WORK, on_cpu=True) + kept,
        "save": weights,
    }


def make(folder: Path, dtype: torch.dtype, config: Qwen3Config = CONFIG) -> None:
    torch.manual_seed(0)
    Qwen3ForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
    vocab = {"<end>": 0, **{f"t{i}": i for i in range(1, 1000)}}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE).save_pretrained(folder)


def held(entry: str) -> int:
    """Bytes of this process now (VmRSS) or at its peak (VmHWM). Not getrusage: its peak outlives the change of program after a fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


def measure(stage: str, folder: Path) -> None:
    """Print, in a process of its own, what is held before anything is loaded, and the peak after the stage."""
    before = held("VmRSS")
    model = load_model(folder, device="cpu")
    if stage != "load":
        # The peak so far is that of loading; from here on it is the stage's own.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    kept = action(stage, model, folder.parent)
    print(json.dumps({"before": before, "after": held("VmHWM")}))
    del kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "FOLDER"))
    given = parser.parse_args()
    if given.stage:
        measure(given.stage[0], Path(given.stage[1]))
        return
    dtype = getattr(torch, given.dtype)
    expected = predicted(memory.without_weights(CONFIG, dtype=dtype))
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make(folder, dtype)
        for stage, wanted in expected.items():
            command = [sys.executable, __file__, "--stage", stage, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            measured = found["after"] - found["before"]
            print(f"{stage}: {measured / 1e6:.0f} MB", file=sys.stderr, flush=True)
            rows[stage] = {"measured": measured, "predicted": wanted, "ratio": round(wanted / measured, 3), "imports": found["before"]}
    print(f"{'stage':<12}{'measured MB':>12}{'predicted MB':>14}{'predicted / measured':>22}")
    for stage, row in rows.items():
        print(f"{stage:<12}{row['measured'] / 1e6:>12.0f}{row['predicted'] / 1e6:>14.0f}{row['ratio']:>22.2f}")
    (RESULTS / f"memory_{given.dtype}.json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps({"dtype": given.dtype, "rows": rows}))


if __name__ == "__main__":
    main()
