"""What the search for residual writers costs: seconds of `load_model` and of `find_writers` on a random llama with a billion parameters.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/probe.py

Both ways: every block proven, and one block of each structure proven, whose writers the others take over. Beside them the floor of any
search that runs all weights: one forward pass of the same tokens through the blocks, without the head.
Loading is the real path, fingerprint included, from a warm page cache. Medians of rounds that take turns, so that whatever else the
machine does falls on all alike. The checkpoint (bfloat16, about 2.5 GB) is written to a temporary folder and deleted afterwards. The last
line is JSON, also kept in results/probe.json.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from resect.models.forward import run_until
from resect.models.load import ChatModel, load_model
from resect.models.writers import find_writers, probe_inputs
from resect.organism import words
from resect.organism.tokenizer import make_tokenizer

ROUNDS = 5
RESULTS = Path(__file__).parent / "results" / "probe.json"
CONFIG = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def write_checkpoint(folder: Path) -> int:
    """Write the random checkpoint and return its number of parameters."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**CONFIG))
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    network.tie_weights()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
            if not bool(torch.isfinite(parameter).all()):
                raise ValueError(name)
    network.model.rotary_emb = type(network.model.rotary_emb)(network.config)
    network.save_pretrained(folder)
    make_tokenizer((*words.SPECIAL, *map(str, range(100)))).save_pretrained(folder)
    return sum(p.numel() for p in network.parameters())


def measure(folder: Path) -> dict[str, list[float]]:
    """Return seconds of loading, of the search both ways and of the bare forward pass, one of each a round."""
    seconds: dict[str, list[float]] = {"load": [], "every_block": [], "by_structure": [], "forward": []}
    for _ in range(ROUNDS):
        model, spent = timed(lambda: load_model(folder, device="cpu"))
        seconds["load"].append(spent)
        steps: dict[str, Callable[[], Any]] = {
            "every_block": lambda m=model: find_writers(m),
            "by_structure": lambda m=model: find_writers(m, every_block=False),
            "forward": lambda m=model: forward(m),
        }
        for name, act in steps.items():
            act()  # kernels and memory are warm, in all
            seconds[name].append(timed(act)[1])
        taken_over = sum(not w.name.startswith(f"{w.proven_in}.") for w in find_writers(model, every_block=False))
        if taken_over != 2 * (len(model.blocks) - 1):
            raise ValueError(f"{taken_over} writers were taken over: the figures are not of what they say")
        del model, steps
    return seconds


def forward(model: ChatModel) -> None:
    run_until(model.network, model.blocks[-1], probe_inputs(model), hooks={})


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = act()
    return found, time.perf_counter() - start


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_checkpoint(Path(folder))
        seconds = measure(Path(folder))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = {name: _ratio(seconds[name], seconds["load"]) for name in seconds if name != "load"}
    over_floor = {name: _ratio(seconds[name], seconds["forward"]) for name in ("every_block", "by_structure")}
    result = {
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "of_loading": {name: round(value, 4) for name, value in ratio.items()},
        "of_forward": {name: round(value, 2) for name, value in over_floor.items()},
        "all_seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{parameters / 1e9:.2f} billion parameters, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds")
    print(f"load_model {median['load']:.2f} s")
    for name, said in {"every_block": "find_writers", "by_structure": "find_writers, one block of each structure"}.items():
        print(f"{said} {median[name]:.3f} s, {ratio[name]:.1%} of loading, {over_floor[name]:.2f} bare forward passes")
    print(f"one forward pass of the same tokens {median['forward']:.3f} s, {ratio['forward']:.1%} of loading")
    print(json.dumps(result))


def _ratio(parts: list[float], wholes: list[float]) -> float:
    """Return the median over rounds: what a busy machine does falls on both of a round."""
    return statistics.median(part / whole for part, whole in zip(parts, wholes, strict=True))


if __name__ == "__main__":
    main()
