"""Run folders: a study becomes files (`docs/formats.md`), the manifest last."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resect import __version__, artifacts
from resect.config import SRAConfig, dump_toml
from resect.errors import UserError
from resect.studies import sra
from resect.studies.inputs import StudyInputs
from resect.studies.steps import Steps

DIRECTIONS = "resect.directions/1"
CLEANING = "resect.cleaning/1"
MANIFEST = "manifest.json"
UNLISTED = {MANIFEST, "timings.json"}
"""Files that are not part of what two equal runs must share."""


def run_sra(inputs: StudyInputs, config: SRAConfig, out: Path, *, on_step: Callable[[str], None] | None = None) -> sra.SRAResult:
    """Run the SRA study into a folder and return its result; a folder with an unfinished run of the same settings is continued.

    Raises:
        UserError: the folder holds something else, or what the study raises.
    """
    open_folder(out, settings(inputs, config))
    steps = Steps(out, on_step)
    result = sra.run(inputs, config, steps)
    _write_values(out, inputs, config, result)
    artifacts.write_json(out / "evaluation.json", result.evaluation)
    artifacts.write_json(out / "study.json", result.study)
    artifacts.write_text(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in result.samples))
    artifacts.write_json(out / "timings.json", {"seconds": steps.seconds, "total": round(sum(steps.seconds.values()), 3)})
    return result


def settings(inputs: StudyInputs, config: SRAConfig) -> dict[str, Any]:
    """Return what `run.toml` holds: enough to tell whether two runs are the same run."""
    return {
        "format": "resect.run/1",
        "study": "sra",
        "model": inputs.model.name,
        "model_fingerprint": inputs.model.fingerprint,
        "inputs_fingerprint": inputs.fingerprint,
        **config.model_dump(),
    }


def open_folder(out: Path, run_settings: dict[str, Any]) -> None:
    """Make the run folder, or check that it holds the same run; writes `run.toml`.

    Raises:
        UserError: the path is a file, or the folder holds a run with other settings or something that is no run.
    """
    text = dump_toml(run_settings)
    if out.exists() and not out.is_dir():
        raise UserError(f"The output path {out} is a file; name a folder for the run.")
    marker = out / "run.toml"
    if marker.exists():
        if marker.read_text(encoding="utf-8") != text:
            changed = _first_difference(marker.read_text(encoding="utf-8"), text)
            raise UserError(f"The folder {out} holds another run ({changed}); choose another --out, or remove it.")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"The folder {out} is not empty and holds no run; choose another --out.")
    else:
        artifacts.write_text(marker, text)


def _first_difference(old: str, new: str) -> str:
    before, after = (dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line) for text in (old, new))
    name = next((n for n in {**before, **after} if before.get(n) != after.get(n)), "settings")
    short = [str(value)[:40] for value in (before.get(name, "unset"), after.get(name, "unset"))]
    return f"{name} was {short[0]}, now {short[1]}"


def _write_values(out: Path, inputs: StudyInputs, config: SRAConfig, result: sra.SRAResult) -> None:
    header = {
        "format": DIRECTIONS,
        "method": "mean_difference",
        "model": inputs.model.name,
        "model_fingerprint": inputs.model.fingerprint,
        "position": config.position,
        "prompts": {
            "harmful": {"fingerprint": inputs.harmful.extract.fingerprint, "n": len(result.materials.harmful)},
            "harmless": {"fingerprint": inputs.harmless.extract.fingerprint, "n": len(result.materials.harmless)},
        },
    }
    artifacts.save_tensors(out / "directions.safetensors", {"vectors": result.materials.raw[:, None, :].contiguous()}, header)
    cleaned = {
        "vectors": result.cleaned[:, None, :].contiguous(),
        "atoms": result.materials.atoms.contiguous(),
        "harmless_mean": result.materials.harmless.double().mean(0).float(),
    }
    about = {**header, "format": CLEANING, "method": "sra", "lambda": result.lam, "atom_scaling": config.atom_scaling}
    artifacts.save_tensors(out / "cleaning.safetensors", cleaned, {**about, "atoms": list(result.materials.names)})
    arm = sra.MAIN_ARM if sra.MAIN_ARM in result.plans else next(iter(result.plans))
    tensors, description = result.plans[arm].to_tensors()
    artifacts.save_tensors(out / "edit.safetensors", tensors, {"format": description["format"], "arm": arm})
    artifacts.write_json(out / "edit.json", {**description, "arm": arm, "model_fingerprint": inputs.model.fingerprint})


def finish(out: Path) -> None:
    """Write the manifest: the SHA-256 of every file of the run but the manifest and the timings. A folder without one is unfinished."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name not in UNLISTED)
    hashes = {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    artifacts.write_json(out / MANIFEST, {"format": "resect.run/1", "resect": __version__, "files": hashes})
