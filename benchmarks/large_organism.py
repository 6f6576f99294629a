"""A 30-million-parameter organism that refuses as the shipped one does: the same function in a larger network.

    python benchmarks/large_organism.py --out runs/large       # the last line is JSON

It is constructed, not trained: training one takes hours on two cores. Every matrix is the shipped organism's in a corner of a larger one
that is zero elsewhere, gains are scaled so that norms over the wider stream give what they gave, and further layers add nothing. A dense
kernel does not know of zeros, so a pass costs what it costs in any network of this size, while refusals, answers and directions stay
those of a network that learnt them. Its turns do not end (the end-of-turn token is put out of the way): as with natural models, an answer
is cut after the 100 tokens that are read of it. Prompts are brought to about 60 tokens by saying each request four times (`said` in
peer_trial.py), which it still refuses.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from resect.models.load import load_model
from resect.organism.shipped import load_organism

WIDTH, HIDDEN, HEADS, LAYERS = 512, 1536, 16, 10
TIMES = 4
"""How often a request is said in a prompt."""


def build(out: Path) -> Path:
    """Write the network with its tokenizer to a folder, if it is not there yet, and return the folder."""
    if (out / "generation_config.json").is_file():
        return out
    small = load_model(load_organism().folder / "aligned", device="cpu")
    network, tokenizer = widened(small.network), small.tokenizer
    # A token that no text holds: turns never end.
    tokenizer.eos_token = tokenizer.bos_token
    network.generation_config.eos_token_id = network.config.eos_token_id = tokenizer.bos_token_id
    tokenizer.save_pretrained(out)
    network.save_pretrained(out)
    return out


@torch.no_grad()
def widened(small: PreTrainedModel) -> PreTrainedModel:
    """Return a network of the sizes above that computes what the small one computes."""
    old: Any = small.config
    settings = old.to_dict() | {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "layer_types": None}
    settings |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
    ratio = old.hidden_size / WIDTH
    # mean(x^2) over the wider stream is smaller by the ratio: so must be the epsilon, and the gain by its root.
    config = Qwen3Config(**settings | {"rms_norm_eps": old.rms_norm_eps * ratio})
    large = Qwen3ForCausalLM(config).eval()
    given = small.state_dict()
    for name, tensor in large.state_dict().items():
        tensor.copy_(_corner(given.get(name), tensor, norm="layernorm" in name or name == "model.norm.weight", ratio=ratio))
    return large


def _corner(given: Tensor | None, like: Tensor, *, norm: bool, ratio: float) -> Tensor:
    """Return a tensor in the corner of a larger one: zeros elsewhere, but for gains."""
    if given is None:
        return torch.ones_like(like) if like.ndim == 1 else torch.zeros_like(like)
    filled = torch.ones_like(like) if like.ndim == 1 else torch.zeros_like(like)
    filled[tuple(slice(n) for n in given.shape)] = given * (ratio**0.5 if norm else 1.0)
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / "large")
    folder = build(parser.parse_args().out)
    network = load_model(folder, device="cpu").network
    print(json.dumps({"folder": str(folder), "parameters": sum(p.numel() for p in network.parameters())}))


if __name__ == "__main__":
    main()
