"""What the peer tool heretic leaves of a direction that it is told to remove, family by family: the property of coverage.py.

    python benchmarks/coverage.py                               # first: resect's own figures, results/coverage.json
    python benchmarks/peer_coverage.py                          # every family that was built there; writes results/peer_coverage.json
    python benchmarks/peer_coverage.py --only qwen3 organism    # some, written over their rows; organism: the shipped one, trained weights

Every family's tiny random network is saved as a checkpoint, with one random direction for all blocks. heretic, in an environment of its own
(peer_environment.py), loads it and edits at weight 1 in every block: with its defaults, and without row normalisation. Left is the norm
over tokens of what a block adds to the residual stream along its direction, after the edit over before it, on equal inputs; the worst
block counts.
"""

import argparse
import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage_page
import families
import peer_environment
import torch
from safetensors.torch import save_file

RUNNER = Path(__file__).parent / "peer_coverage_runner.py"


def measure(folders: Sequence[Path], python: Path, *, seconds: float = 60) -> dict[str, dict[str, Any]]:
    """Return {family: {setting: {status, left_max, left, touched, error}}} of checkpoints, each with its `directions.safetensors`.

    `status` is "edited", "not edited", "not loaded", "not measured" (a crash, the time limit, or several streams), or, where heretic is
    not to blame, "unknown to its transformers" or "does not run without it".
    """
    found: dict[str, dict[str, Any]] = {}
    for line in peer_environment.run(python, [str(RUNNER), "--seconds", str(seconds), *map(str, folders)]).splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("name"), {})[row.pop("setting")] = row
    return found


def measure_families(names: Sequence[str], python: Path, *, seconds: float = 60) -> dict[str, dict[str, Any]]:
    """Return the same for families of families.py, by name, with its recipe; "not saved" are those whose checkpoint cannot be written."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            try:
                save_checkpoint(name, Path(place) / name)
            except Exception as error:  # noqa: BLE001 (a family that cannot be saved is a row of the table)
                found[name] = {key: {"status": "not saved", "error": f"{type(error).__name__}: {error}"} for key in coverage_page.SETTINGS}
        found |= measure([Path(place) / name for name in names if name not in found], python, seconds=seconds)
    return {name: found[name] | {"recipe": families.recipe(name)} for name in names}


def save_checkpoint(name: str, folder: Path) -> Path:
    """Save a family's tiny network, a word tokenizer with a chat template, and the direction of coverage.py; return the folder."""
    from transformers import AutoConfig

    from resect.organism.shipped import load_organism

    if name == "organism":
        shutil.copytree(load_organism().folder / "aligned", folder)
    else:
        _save_family(name, folder)
    width = AutoConfig.from_pretrained(folder).get_text_config(decoder=True).hidden_size
    save_file({"vectors": torch.randn(1, width, generator=torch.Generator().manual_seed(11))}, folder / "directions.safetensors")
    return folder


def _save_family(name: str, folder: Path) -> None:
    from transformers.utils import logging

    from resect.organism import words
    from resect.organism.tokenizer import make_tokenizer

    logging.disable_progress_bar()
    network, _ = families.build(name)
    network.save_pretrained(folder)
    make_tokenizer((*words.SPECIAL, *map(str, range(100)))).save_pretrained(folder)


def summary(peer: Mapping[str, Mapping[str, Any]], *, removed: float = 1e-3) -> dict[str, Any]:
    """Return counts by setting: families tried, edited, and edited so that at most `removed` of the component is left in every block."""
    counts: dict[str, Any] = {"families": len(peer), "removed_means_at_most": removed}
    for setting in coverage_page.SETTINGS:
        rows = [settings[setting] for settings in peer.values()]
        statuses = Counter(row["status"] for row in rows)
        removed_in = sum(row["status"] == "edited" and row["left_max"] <= removed for row in rows)
        counts[setting] = {"statuses": dict(sorted(statuses.items())), "removed": removed_in}
    return counts


def compare(only: Sequence[str] | None, place: Path, *, seconds: float = 60) -> dict[str, Any]:
    """Measure the families that resect's walk built, or some of them over their rows; write results and page, return the counts."""
    ours = json.loads(coverage_page.OURS.read_text(encoding="utf-8"))["families"] if coverage_page.OURS.is_file() else []
    names = only or ["organism", *(row["name"] for row in ours if row["status"] != "not built")]
    path = coverage_page.PEERS
    known = json.loads(path.read_text(encoding="utf-8"))["families"] if only and path.is_file() else {}
    peer = known | measure_families(names, peer_environment.ensure(place), seconds=seconds)
    counts = summary(peer)
    report = {"versions": peer_environment.record(place)["versions"], "summary": counts, "families": peer}
    path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    coverage_page.publish()
    print(coverage_page.peer_table(ours, peer))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--peer-venv", type=Path, default=peer_environment.VENV)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of one measurement")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(compare(options.only, options.peer_venv, seconds=options.seconds), sort_keys=True))


if __name__ == "__main__":
    main()
