"""Prompts per second of capture, beside heretic's capture of residuals and a bare forward pass; peak memory beside the bare pass's.

    python benchmarks/capture.py                     # the last line is JSON, also kept in results/capture.json

Two models, one thread: the shipped organism on its own prompts, and a random one of 31.7 million parameters on prompts of about 60 words.
In every round capture, the bare pass and heretic take turns; ratios are of one round, and their median is reported. Capture and the bare
pass swap places from round to round, and CPU seconds stand beside, for a machine that does other things, too. Against heretic rendering and
tokenising count on both sides, against the bare pass on neither. The bare pass runs the network without its head, on the same batches.
heretic runs as a program in its own environment (peer_environment.py), with the faster of two batch sizes, found before. What both capture
is compared first. Memory is measured in a process each: the resident set at its peak, as Linux counts it.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_environment
import torch
from memory import held
from peer_trial import SYSTEM
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from resect.activations import capture
from resect.models.batches import MAX_PADDING, batches
from resect.models.chat import Rendered, render
from resect.models.forward import model_inputs
from resect.models.load import ChatModel, load_model
from resect.organism.shipped import load_organism

RUNNER = Path(__file__).parent / "capture_peer.py"
RESULTS = Path(__file__).parent / "results" / "capture.json"
BATCHES = (32, 128)
SAME = 1e-4  # of the norm of a row: other kernels, the same numbers
LARGE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 4}


@dataclass(frozen=True)
class Case:
    """A model on disk and the prompts for it."""

    name: str
    folder: Path
    prompts: tuple[str, ...]


def cases(place: Path, *, count: int) -> tuple[Case, ...]:
    """Return the organism with its extract prompts, and the large model, which is written to `place`, with longer ones."""
    organism = load_organism()
    language, draw = organism.language, random.Random(0)
    texts = [p.text for pair in zip(language.harmful("extract"), language.harmless("extract"), strict=False) for p in pair]
    base = organism.aligned()
    torch.manual_seed(0)
    config = Qwen3Config(**LARGE, head_dim=64, vocab_size=len(base.tokenizer), tie_word_embeddings=True, eos_token_id=0)
    Qwen3ForCausalLM(config).save_pretrained(place / "large")
    base.tokenizer.save_pretrained(place / "large")
    words = " ".join(texts).split()
    lengths = [max(20, min(120, round(draw.gauss(60, 18)))) for _ in range(count)]
    long = tuple(" ".join(words[i : i + n]) for i, n in zip(draw.sample(range(len(words) - 120), count), lengths, strict=True))
    return Case("organism", organism.folder / "aligned", tuple(texts[: 8 * count])), Case("large", place / "large", long)


@contextmanager
def peer(python: Path, case: Case, place: Path) -> Iterator[Callable[[int], float]]:
    """Start heretic on a case; the function returns the seconds of one capture of all prompts with a batch size."""
    prompts, out = place / f"{case.name}.json", place / f"{case.name}.safetensors"
    prompts.write_text(json.dumps(case.prompts), encoding="utf-8")
    command = [python, str(RUNNER), str(case.folder), str(prompts), SYSTEM, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=peer_environment.surroundings(1), **pipes) as process:
        asked, answers = process.stdin, process.stdout

        def seconds(batch: int) -> float:
            if asked is None or answers is None:
                raise RuntimeError("heretic's process has no pipes")
            print(batch, file=asked, flush=True)
            line = answers.readline()
            if not line:
                raise RuntimeError(f"heretic ended on {case.name}; its message is above")
            return json.loads(line)["seconds"]

        yield seconds
        if asked is not None:
            asked.close()


def bare(model: ChatModel, rendered: Sequence[Rendered]) -> Callable[[], None]:
    """Return a function that runs the network without its head over the same batches as capture, made beforehand."""
    inputs = [
        model_inputs(model.network, input_ids=b.input_ids, attention_mask=b.attention_mask, position_ids=b.position_ids)
        for b in batches(rendered, max_padding=MAX_PADDING, pad_id=model.pad_id)
    ]
    decoder = model.network.get_decoder()

    def run() -> None:
        with torch.no_grad():
            for given in inputs:
                decoder(**given)

    return run


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def compare(case: Case, python: Path, place: Path, *, rounds: int) -> dict[str, Any]:
    """Return seconds of every round and what follows from them."""
    model = load_model(case.folder, dtype="float32", device="cpu")
    rendered = render(model.tokenizer, case.prompts, system=SYSTEM)
    plain = bare(model, rendered)
    seconds: dict[str, list[float]] = {"render": [], "capture": [], "bare": [], "peer": []}
    cpu: dict[str, list[float]] = {"capture": [], "bare": []}
    with peer(python, case, place) as theirs:
        tried = {batch: [theirs(batch) for _ in range(2)][-1] for batch in BATCHES}
        batch = min(tried, key=lambda b: tried[b])
        check_same(capture(model, rendered).rows, load_file(place / f"{case.name}.safetensors")["residuals"])
        plain()
        acts: dict[str, Callable[[], Any]] = {"capture": lambda: capture(model, rendered), "bare": plain}
        for number in range(rounds):
            seconds["render"].append(timed(lambda: render(model.tokenizer, case.prompts, system=SYSTEM)))
            for name in sorted(acts, reverse=number % 2 == 0):
                used = time.process_time()
                seconds[name].append(timed(acts[name]))
                cpu[name].append(time.process_time() - used)
            seconds["peer"].append(theirs(batch))
    whole = [r + c for r, c in zip(seconds["render"], seconds["capture"], strict=True)]
    rates = {name: round(len(case.prompts) / statistics.median(v), 1) for name, v in (seconds | {"render_capture": whole}).items()}
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "prompts": len(case.prompts),
        "tokens": sum(len(r.ids) for r in rendered),
        "peer_batch": batch,
        "prompts_per_second": rates,
        "over_peer": ratio(seconds["peer"], whole),
        "over_bare": ratio(seconds["bare"], seconds["capture"]),
        "over_bare_cpu": ratio(cpu["bare"], cpu["capture"]),
        "seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
    }


def check_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Check that both captured the same rows; theirs begin with the embeddings, and end behind the last norm."""
    a, b = ours[:, :-1], theirs[:, 1:-1]
    gap = float(((a - b).norm(dim=-1) / a.norm(dim=-1)).max())
    if a.shape != b.shape or gap > SAME:
        raise RuntimeError(f"heretic captured other rows: relative gap {gap:.1e}, shapes {tuple(a.shape)} and {tuple(b.shape)}")


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return round(statistics.median(n / d for n, d in zip(numerators, denominators, strict=True)), 3)


def memory(case: Case, place: Path) -> dict[str, Any]:
    """Return peak resident bytes of capture and of the bare pass, in a process each, and their ratio."""
    prompts = place / f"{case.name}.json"
    found = {}
    for what in ("capture", "bare"):
        command = [sys.executable, __file__, "--measure", what, str(case.folder), str(prompts)]
        found[what] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return {
        "peak": {what: row["peak"] for what, row in found.items()},
        "ratio": round(found["capture"]["peak"] / found["bare"]["peak"], 3),
        "above_loaded": {what: row["peak"] - row["loaded"] for what, row in found.items()},
    }


def measure(what: str, folder: str, prompts: str) -> None:
    """Print, in a process of its own, what is held once the model is loaded, and the peak afterwards."""
    torch.set_num_threads(1)
    model = load_model(folder, dtype="float32", device="cpu")
    rendered = render(model.tokenizer, json.loads(Path(prompts).read_text(encoding="utf-8")), system=SYSTEM)
    run: Callable[[], Any] = bare(model, rendered) if what == "bare" else lambda: capture(model, rendered)
    loaded = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    kept = run()
    print(json.dumps({"loaded": loaded, "peak": held("VmHWM")}))
    del kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=48, help="prompts for the large model; the organism gets eight times as many")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "FOLDER", "PROMPTS"))
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    torch.set_num_threads(1)
    python = peer_environment.ensure(options.peer_venv)
    report: dict[str, Any] = {"rounds": options.rounds, "versions": peer_environment.record(options.peer_venv).get("versions")}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for case in cases(place, count=options.prompts):
            row = compare(case, python, place, rounds=options.rounds) | {"memory": memory(case, place)}
            report[case.name] = row
            print(f"{case.name}: {row['prompts']} prompts, {row['tokens']} tokens, {row['parameters'] / 1e6:.1f} million parameters")
            print("  prompts per second: " + ", ".join(f"{k} {v:g}" for k, v in row["prompts_per_second"].items()))
            print(f"  {row['over_peer']} x heretic, {row['over_bare']} x the bare pass ({row['over_bare_cpu']} by CPU seconds)")
            print(f"  {row['memory']['ratio']} x the memory of the bare pass", flush=True)
    RESULTS.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
