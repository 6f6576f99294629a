"""What the search for residual writers costs: seconds of `load_model` and of `find_writers` on a random llama with a billion parameters.

    python benchmarks/probe.py

The checkpoint (bfloat16, about 2.5 GB) is written to a temporary folder and deleted afterwards. The last line is JSON.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from resect.models.load import load_model
from resect.models.writers import find_writers
from resect.organism import words
from resect.organism.tokenizer import make_tokenizer

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


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_checkpoint(Path(folder))
        start = time.perf_counter()
        model = load_model(folder, device="cpu")
        loaded = time.perf_counter()
        writers = find_writers(model)
        found = time.perf_counter()
        del model
    result = {
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "writers": len(writers),
        "load_seconds": round(loaded - start, 2),
        "probe_seconds": round(found - loaded, 2),
        "ratio": round((found - loaded) / (loaded - start), 3),
    }
    print(f"{parameters / 1e9:.2f} billion parameters, {len(writers)} writers in {len(writers) // 2} blocks")
    print(f"load_model {result['load_seconds']} s, find_writers {result['probe_seconds']} s: {100 * result['ratio']:.1f} % of loading")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
