"""What the search for residual writers costs: seconds of `load_model` and of `find_writers` on a random llama with a billion parameters.

    python benchmarks/probe.py

Beside them the floor of any search that runs the real weights: one forward pass of the same tokens through the blocks, without the head.
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
    """Return seconds of loading, of the search and of the bare forward pass, one of each a round."""
    seconds: dict[str, list[float]] = {"load": [], "probe": [], "forward": []}
    for _ in range(ROUNDS):
        model, spent = timed(lambda: load_model(folder, device="cpu"))
        seconds["load"].append(spent)
        for name, act in {"probe": lambda m=model: find_writers(m), "forward": lambda m=model: forward(m)}.items():
            act()  # kernels and memory are warm, in both
            seconds[name].append(timed(act)[1])
        del model
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
    load, probe, floor = (statistics.median(seconds[name]) for name in ("load", "probe", "forward"))
    result = {
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "load_seconds": round(load, 2),
        "probe_seconds": round(probe, 3),
        "forward_seconds": round(floor, 3),
        "ratio": round(statistics.median(p / s for p, s in zip(seconds["probe"], seconds["load"], strict=True)), 3),
        "floor_ratio": round(statistics.median(f / s for f, s in zip(seconds["forward"], seconds["load"], strict=True)), 3),
        "over_floor": round(statistics.median(p / f for p, f in zip(seconds["probe"], seconds["forward"], strict=True)), 2),
        "all_seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{parameters / 1e9:.2f} billion parameters, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds")
    print(f"load_model {load:.2f} s; find_writers {probe:.3f} s, {result['ratio']:.1%} of loading")
    print(
        f"one forward pass of the same tokens {floor:.3f} s, {result['floor_ratio']:.1%}; find_writers takes {result['over_floor']} of them"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
