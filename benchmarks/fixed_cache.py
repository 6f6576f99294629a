"""What a decoding step costs in a growing cache and in one of fixed length: operations, and seconds on this machine.

    python benchmarks/fixed_cache.py                # the last line is JSON, kept in benchmarks/results/fixed_cache.json

Operations are counted at PyTorch's dispatcher, without those that only look at a tensor in another way: on a GPU nearly each is a kernel to
be launched. The count is taken from Llamas of two depths, padded and under an edit of every writer, and is so much a layer and so much a
step; width does not enter. Seconds are those of one thread's own work, for whole responses in both ways in turn, on the shipped organism
and on a deep and a wide random Llama.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.generation import NONE, Shortcuts, respond
from resect.models.chat import Rendered
from resect.models.load import ChatModel, load_model, wrap
from resect.models.writers import find_writers
from resect.organism import words
from resect.organism.shipped import load_organism
from resect.organism.tokenizer import make_tokenizer

RESULTS = Path(__file__).parent / "results" / "fixed_cache.json"
WAYS = {"growing": NONE, "fixed": replace(NONE, static_cache=True)}
DEPTHS = (2, 4)


class Count(TorchDispatchMode):
    """The operations of each forward pass that compute or move something."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[Counter[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments) or "view" in func.name()
        if self.passes and not looks:
            self.passes[-1][func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def llama(layers: int, *, width: int = 64) -> ChatModel:
    """Return a random Llama that never ends a turn."""
    torch.manual_seed(0)
    size = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 8, "num_key_value_heads": 4}
    tokenizer = make_tokenizer((*words.SPECIAL, *map(str, range(100))))
    network = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=len(tokenizer), **size)).eval()
    network.generation_config.eos_token_id = [0]
    return wrap(network, tokenizer, name=f"llama, {layers} layers of {width}")


def prompts(model: ChatModel, count: int, lengths: tuple[int, int]) -> list[Rendered]:
    """Return prompts of random tokens, of lengths that take turns."""
    draw, vocabulary = torch.Generator().manual_seed(0), len(model.tokenizer)
    return [Rendered(torch.randint(5, vocabulary, (lengths[i % 2],), generator=draw).tolist(), None) for i in range(count)]


def operations(layers: int, shortcuts: Shortcuts) -> Counter[str]:
    """Return the operations of the last step, what chooses the token and asks who is left included."""
    model = llama(layers)
    vectors = torch.randn(layers, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    writers, count = find_writers(model), Count()
    model.network.register_forward_pre_hook(lambda *_: count.passes.append(Counter()))
    with applied(model, writers, make_plan(writers, vectors, torch.ones(layers))), count:
        respond(model, prompts(model, 4, (5, 9)), max_new_tokens=8, shortcuts=shortcuts)
    return count.passes[-2]


def seconds(model: ChatModel, *, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Return the median seconds of responses in both ways, taken in turn, and of the ratio of growing to fixed."""
    asked = prompts(model, rows, (24, 32))
    said = {way: respond(model, asked, max_new_tokens=tokens, shortcuts=shortcuts) for way, shortcuts in WAYS.items()}
    assert said["growing"] == said["fixed"], "the ways differ"
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, shortcuts in WAYS.items():
            start = time.process_time()
            respond(model, asked, max_new_tokens=tokens, shortcuts=shortcuts)
            taken[way].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
    found = {f"{way}_s": statistics.median(times) for way, times in taken.items()}
    return found | {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rows": rows, "new_tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counted = {}
    for way, shortcuts in WAYS.items():
        few, many = (operations(layers, shortcuts).total() for layers in DEPTHS)
        layer = (many - few) // (DEPTHS[1] - DEPTHS[0])
        counted[way] = {"a_layer": layer, "a_step": few - DEPTHS[0] * layer}
        print(f"{way}: {counted[way]} operations")
    organism = load_model(load_organism().folder / "aligned", device="cpu")
    organism.network.generation_config.eos_token_id = [0]
    cases = [(organism, 16, 64), (llama(32), 16, 32), (llama(6, width=512), 16, 64)]
    measured = {}
    for name, (model, rows, tokens) in zip(("shipped organism", "deep, 32 x 64", "wide, 6 x 512"), cases, strict=True):
        measured[name] = row = seconds(model, rows=rows, tokens=tokens, rounds=options.rounds)
        print(f"{name}: {row}", flush=True)
    total = {"operations": counted, "seconds": measured}
    options.out.write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(total))


if __name__ == "__main__":
    main()
