"""The peer tool heretic in a virtual environment of its own.

    python benchmarks/peer_environment.py --peer-venv runs/peer     # 1.9 GB, once; the last line is JSON

heretic is under the AGPL: it is run as an outside program, nothing of it is part of resect, and resect's own environment does not have it.
Torch is the CPU build, so that no CUDA libraries are brought; give --torch torch==2.13.0 where the CPU build has another name.
"""

import argparse
import hashlib
import json
import os
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VENV = Path("runs") / "peer"
TORCH = "torch==2.13.0+cpu"
# All pinned, so that nothing is left to resolve. heretic 1.4.0 asks for huggingface-hub 1.x: transformers 5.22.2 is the newest that has it.
REQUIREMENTS = Path(__file__).parent / "peer_requirements.txt"
_REPORT = """
import importlib.metadata as m, json, torch, heretic.model
names = ("heretic-llm", "torch", "transformers", "peft", "bitsandbytes", "optuna")
print(json.dumps({"cuda": torch.version.cuda, "versions": {n: m.version(n) for n in names}}))
"""


def ensure(place: Path = VENV, *, torch: str = TORCH) -> Path:
    """Return the Python of the peer's environment, made first if it is not there or was made from other requirements.

    The record of what was installed is written last, so that an environment whose installation broke off is made again.
    """
    python = place.absolute() / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = {"torch": torch, "requirements": hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()}
    if python.is_file() and record(place).items() >= wanted.items():
        return python
    (place / "peer.json").unlink(missing_ok=True)
    if not python.is_file():
        venv.create(place, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-deps", torch, "-r", REQUIREMENTS], check=True)
    found = json.loads(run(python, ["-c", _REPORT]).splitlines()[-1])
    (place / "peer.json").write_text(json.dumps(wanted | found, indent=1) + "\n", encoding="utf-8")
    return python


def record(place: Path) -> dict[str, Any]:
    """Return what is installed there: `versions`, `cuda`; empty if nothing is, or the installation broke off."""
    path = place / "peer.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run(python: Path, arguments: list[str], *, threads: int = 1) -> str:
    """Return what a program of the peer's environment prints; its messages go to our standard error. Raises if it fails."""
    return subprocess.run([python, *arguments], env=surroundings(threads), check=True, text=True, stdout=subprocess.PIPE).stdout


def surroundings(threads: int) -> Mapping[str, str]:
    """Return environment variables for the peer: offline, a fixed number of threads, and none of ours that reach into its Python."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads), "COLUMNS": "400"}


def size_of(place: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-venv", type=Path, default=VENV)
    parser.add_argument("--torch", default=TORCH)
    options = parser.parse_args()
    python = ensure(options.peer_venv, torch=options.torch)
    print(json.dumps(record(options.peer_venv) | {"python": str(python), "gigabytes": round(size_of(options.peer_venv) / 1e9, 2)}))


if __name__ == "__main__":
    main()
