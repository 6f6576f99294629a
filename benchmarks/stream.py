"""Editing a checkpoint on disk: how long it takes beside copying it, how much memory, and what 20 kills do to it.

    python benchmarks/stream.py --folder runs/stream                  # 12 GB; needs three times that much space
    python benchmarks/stream.py --folder runs/stream --size-gb 0.5    # a quick look

Makes a Llama-like bfloat16 checkpoint of random weights in shards, then alternates `cp` with `resect apply`, each in a process of its own
and until its bytes are on the disk. A smaller checkpoint is edited while the process is killed (SIGKILL) at random moments, and edited
again by the same command. Prints a table, writes benchmarks/results/stream.json; the last line is JSON. The folder's contents are removed.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from resect import artifacts
from resect.edit.output import JOB, JOURNAL

RESULTS = Path(__file__).parent / "results" / "stream.json"
SLOWDOWN_BAR, MEMORY_BAR_GIB = 1.5, 1.5
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
SMALL = {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 8192}
LARGE_FROM_GB = 8
SHARD_BYTES = 2_000_000_000
KILLED_GB = 0.4
KILLED_AT_RENAME = """
import os, signal
left, replace, rename = [{number}], os.replace, os.rename

def killed(own):
    def renamed(old, new, **more):
        if str(new).endswith(".safetensors") or str(new) == {out!r}:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        own(old, new, **more)
    return renamed

os.replace, os.rename = killed(replace), killed(rename)
"""


def shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one block by their names in it."""
    d, inner, kv = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // 4
    attention = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, d)}
    mlp = {"gate_proj": (inner, d), "up_proj": (inner, d), "down_proj": (d, inner)}
    named = {f"self_attn.{n}.weight": s for n, s in attention.items()} | {f"mlp.{n}.weight": s for n, s in mlp.items()}
    return named | {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}


def numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def make_checkpoint(folder: Path, size_gb: float, *, shard_bytes: int) -> int:
    """Write a checkpoint of about this size and return the number of bytes of its weights."""
    config = dict(LARGE if size_gb >= LARGE_FROM_GB else SMALL)
    ends = {"model.embed_tokens.weight": (config["vocab_size"], config["hidden_size"]), "model.norm.weight": (config["hidden_size"],)}
    ends["lm_head.weight"] = ends["model.embed_tokens.weight"]
    a_block = 2 * sum(numel(s) for s in shapes(config).values())
    layers = max(2, round((size_gb * 1e9 - 2 * sum(numel(s) for s in ends.values())) / a_block))
    tensors = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes(config).items()} | ends
    folder.mkdir(parents=True)
    rest = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | rest | {"max_position_embeddings": 8192, "tie_word_embeddings": False}))
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(1 << 24, generator=generator) * 0.02).bfloat16()
    weight_map, batch, size, count = {}, {}, 0, 0
    for k, (name, shape) in enumerate(tensors.items()):
        numbers = numel(shape)
        repeated = noise.roll(977 * k).repeat(-(-numbers // len(noise)))[:numbers].reshape(shape)
        batch[name] = 1 + repeated if len(shape) == 1 else repeated
        size += 2 * numbers
        if size >= shard_bytes or k == len(tensors) - 1:
            count += 1
            file = f"model-{count:05d}.safetensors"
            save_file(batch, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(batch, file)
            batch, size = {}, 0
    total = 2 * sum(numel(s) for s in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    vectors = torch.randn(layers, 1, config["hidden_size"], generator=generator)
    artifacts.save_tensors(folder.parent / f"{folder.name}.directions", {"vectors": vectors}, {"format": "resect.directions/1"})
    os.sync()
    return total


def made(folder: Path, size_gb: float, *, shard_bytes: int) -> int:
    """Make it in a process of its own: a child's peak memory counts from its parent's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(make_checkpoint, folder, size_gb, shard_bytes=shard_bytes).result()


def command(source: Path, out: Path, before: str = "") -> list[str]:
    directions = source.parent / f"{source.name}.directions"
    program = f"{before}\nfrom resect.cli import main; main()"
    return [sys.executable, "-c", program, "apply", str(source), "--directions", str(directions), "--out", str(out)]


def time_apply(source: Path, out: Path) -> tuple[float, float]:
    """Return seconds and peak resident memory in GiB of one whole command."""
    start = time.perf_counter()
    process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(said.decode())
    return seconds, usage.ru_maxrss * 1024 / 2**30


def time_copy(source: Path, out: Path) -> float:
    """Return the seconds that `cp` takes until every byte is on the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    for path in out.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - start


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.file_digest(p.open("rb"), "sha256").hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def time_rounds(folder: Path, size_gb: float, rounds: int) -> dict[str, Any]:
    source, out = folder / "source", folder / "out"
    total = made(source, size_gb, shard_bytes=min(SHARD_BYTES, int(size_gb * 1e9 / 4)))
    copies, applies, peaks, loads = [], [], [], []
    for k in range(rounds):
        loads.append(os.getloadavg()[0])
        copies.append(time_copy(source, out))
        shutil.rmtree(out)
        seconds, peak = time_apply(source, out)
        shutil.rmtree(out)
        applies.append(seconds)
        peaks.append(peak)
        print(f"round {k + 1}: cp {copies[-1]:.1f} s, apply {seconds:.1f} s, peak {peak:.2f} GiB, load {loads[-1]:.1f}", flush=True)
    shutil.rmtree(source)
    return {"bytes": total, "copy_s": copies, "apply_s": applies, "peak_gib": peaks, "load": loads}


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stage(partial: Path) -> str:
    """Return what the command was at, from what it left: nothing written yet, copying ahead, editing, or all shards done."""
    if not partial.exists():
        return "before"
    if not (partial / JOURNAL / JOB).exists():
        return "copying"
    return "editing" if list(partial.glob(".*.safetensors.tmp")) else "finishing"


def watch(source: Path, out: Path) -> dict[str, float]:
    """Return for how many seconds an undisturbed command copies ahead, and for how many it edits."""
    partial, seen = out.with_name(f".{out.name}.partial"), {}
    process = started(command(source, out))
    while not out.exists() and process.poll() is None:
        now, name = time.perf_counter(), stage(partial)
        seen[name] = (seen.get(name, (now, now))[0], now)
        time.sleep(0.001)
    process.wait()
    return {name: seen[name][1] - seen[name][0] for name in ("copying", "editing")}


def kill_in(name: str, source: Path, out: Path, seconds: float) -> str:
    """Kill the command so many seconds after a stage begins; return the stage that it was in, or that it was over."""
    partial = out.with_name(f".{out.name}.partial")
    process = started(command(source, out))
    while process.poll() is None and not ((partial / JOURNAL / JOB) if name == "editing" else partial).exists():
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return "late" if out.exists() else stage(partial)


def kill_at_rename(source: Path, out: Path, number: int) -> str:
    """Let the command kill itself right before a shard, or at last the folder, gets its final name; renames are counted from 0."""
    process = started(command(source, out, KILLED_AT_RENAME.format(number=number, out=str(out))))
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"The command was not killed at rename {number}.")
    return "rename"


def kill_rounds(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the command at random moments of its work, and compare what the same command then makes.

    Of every four moments two are uniform in all the time in which it works on its output, one is uniform while shards are edited, which is
    a small part of that, and one is right before a rename. Kills that came too late are counted, and drawn again from a shorter time.
    """
    source, out, straight = folder / "small", folder / "out", folder / "straight"
    made(source, KILLED_GB, shard_bytes=int(KILLED_GB * 1e9 / 8))
    before, shards = hashes(source), len(list(source.glob("*.safetensors")))
    time_apply(source, straight)
    wanted, partial = hashes(straight), out.with_name(f".{out.name}.partial")
    shutil.rmtree(straight)
    stages = watch(source, straight)
    shutil.rmtree(straight)
    chance = random.Random(seed)
    rows, late = [], 0
    while len(rows) < kills:
        if len(rows) % 4 == 3:
            at = kill_at_rename(source, out, chance.randrange(shards + 1))
        else:
            ahead = 0.0 if len(rows) % 4 == 2 else stages["copying"]
            moment = chance.uniform(0, ahead + stages["editing"])
            name = "copying" if moment < ahead else "editing"
            at = kill_in(name, source, out, moment if moment < ahead else moment - ahead)
        if at == "late":
            late += 1
            stages["editing"] *= 0.8
            shutil.rmtree(out)
            continue
        finished = sorted(partial.glob("model*.safetensors"))
        whole = all(hashlib.file_digest(p.open("rb"), "sha256").hexdigest() == wanted[p.name] for p in finished)
        time_apply(source, out)
        rows.append({"stage": at, "finished": len(finished), "whole": whole, "same": hashes(out) == wanted})
        shutil.rmtree(out)
        print(f"kill {len(rows)}: {rows[-1]}", flush=True)
    return {"kills": rows, "too_late": late, "stages_s": stages, "source_untouched": hashes(source) == before, "shards": shards}


def summary(timed: dict[str, Any], killed: dict[str, Any], kills: int) -> dict[str, Any]:
    ratio = median(timed["apply_s"]) / median(timed["copy_s"])
    rows = killed["kills"]
    return {
        "gigabytes": timed["bytes"] / 1e9,
        "copy_s": median(timed["copy_s"]),
        "apply_s": median(timed["apply_s"]),
        "ratio": ratio,
        "ratio_bar": SLOWDOWN_BAR,
        "peak_gib": max(timed["peak_gib"]),
        "peak_bar_gib": MEMORY_BAR_GIB,
        "kills": kills,
        "kills_in_time": len(rows),
        "kills_too_late": killed["too_late"],
        "kills_by_stage": dict(Counter(row["stage"] for row in rows)),
        "same_bytes": sum(row["same"] for row in rows),
        "half_files": sum(not row["whole"] for row in rows),
        "source_untouched": killed["source_untouched"],
        "passed": ratio <= SLOWDOWN_BAR
        and max(timed["peak_gib"]) <= MEMORY_BAR_GIB
        and len(rows) == kills
        and all(row["same"] and row["whole"] for row in rows)
        and killed["source_untouched"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size-gb", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if folder.exists():
        raise SystemExit(f"{folder} exists; give a folder that does not, its contents are removed at the end.")
    try:
        timed = time_rounds(folder, options.size_gb, options.rounds)
        killed = kill_rounds(folder, options.kills, options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = summary(timed, killed, options.kills)
    for name, value in found.items():
        print(f"{name:18} {value:.3g}" if isinstance(value, float) else f"{name:18} {value}")
    artifacts.write_json(RESULTS, {"summary": found, "timed": timed, "killed": killed})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
