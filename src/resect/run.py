"""Run folders: a study becomes files (`docs/formats.md`), the manifest last."""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from resect import __version__, artifacts
from resect.cache import Cache
from resect.config import ContrastConfig, SRAConfig, StudyConfig, dump_toml, make_config
from resect.edit.plan import EditPlan
from resect.edit.proof import FILE as PROOF
from resect.errors import UserError
from resect.studies import contrast, sra
from resect.studies.contrast_inputs import ContrastInputs
from resect.studies.inputs import StudyInputs
from resect.studies.materials import Materials
from resect.studies.steps import TENSORS, Steps

RUN = "resect.run/1"
ACTIVATIONS = "resect.activations/1"
CLEANING = "resect.cleaning/1"
MANIFEST = "manifest.json"
UNLISTED = {MANIFEST, "timings.json"}
"""Files that are not part of what two equal runs must share."""
MATERIALS = {"harmful": "rows", "harmless": "rows", "atoms": "atoms"}
"""Files of `activations/` that materials are made of, with the tensor in each."""


def run_sra(
    inputs: StudyInputs, config: SRAConfig, out: Path, *, on_step: Callable[[str], None] | None = None, cache: Cache | None = None
) -> sra.SRAResult:
    """Run the SRA study into a folder and return its result; a folder with an unfinished run of the same settings is continued.

    What another run has computed already is taken from the cache, if there is one, with the same bytes in the folder.

    Raises:
        UserError: the folder holds something else, or what the study raises.
    """
    open_folder(out, settings(inputs, config))
    steps = Steps(out, on_step, cache)
    result = sra.run(inputs, config, steps)
    about = save_about(out, inputs, config, result.materials)
    save_directions(out, about, result.materials.raw)
    save_cleaning(out, about, result.materials, result.cleaned, method=sra.MAIN_ARM, softness=result.lam)
    arm = result.edited
    save_edit(out, about, result.plans[arm], arm=arm, choice=result.study["arms"][arm], proof=result.proof)
    artifacts.write_json(out / "evaluation.json", result.evaluation)
    artifacts.write_json(out / "study.json", result.study)
    artifacts.write_text(out / "samples.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in result.samples))
    artifacts.write_json(out / "timings.json", {"seconds": steps.seconds, "total": round(sum(steps.seconds.values()), 3)})
    return result


def run_contrast(
    inputs: ContrastInputs, config: ContrastConfig, out: Path, *, on_step: Callable[[str], None] | None = None, cache: Cache | None = None
) -> contrast.ContrastResult:
    """Run the contrast study into a folder and return its result; a folder with an unfinished run of the same settings is continued.

    Raises:
        UserError: the folder holds something else, or what the study raises.
    """
    open_folder(out, settings(inputs, config, study="contrast"))
    steps = Steps(out, on_step, cache)
    result = contrast.run(inputs, config, steps)
    about = {"model": inputs.model.name, "model_fingerprint": inputs.model.fingerprint, "position": config.position}
    for arm in (a for a in result.arms if not a.control):
        found = result.recipes.of(arm).directions
        header = {**about, "format": artifacts.DIRECTIONS, "method": arm.name, "prompts": result.document["prompts"]["used"]}
        artifacts.save_tensors(out / "directions" / f"{arm.file}.safetensors", {"vectors": found.vectors.contiguous()}, header)
    artifacts.write_json(out / "contrast.json", result.document)
    artifacts.write_json(out / "timings.json", {"seconds": steps.seconds, "total": round(sum(steps.seconds.values()), 3)})
    return result


def settings(inputs: StudyInputs | ContrastInputs, config: StudyConfig, *, study: str = "sra") -> dict[str, Any]:
    """Return what `run.toml` holds: enough to tell whether two runs are the same run."""
    return {
        "format": RUN,
        "resect": __version__,
        "study": study,
        "model": inputs.model.name,
        "model_fingerprint": inputs.model.fingerprint,
        "inputs_fingerprint": inputs.fingerprint,
        **config.model_dump(),
    }


def read_settings(run: Path) -> SRAConfig:
    """Return the settings of a run folder of the SRA study.

    Raises:
        UserError: no run folder, a `run.toml` that is malformed or of another version, or another study.
    """
    path = run / "run.toml"
    if not path.is_file():
        raise UserError(f"{run} is no run folder (it has no run.toml); make one with: resect activations MODEL --out {run}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}); run the study again into another folder.") from error
    if values.get("format") != RUN:
        raise UserError(f"{path} has format {values.get('format')!r}, but this version reads {RUN!r}; run the study again.")
    if values.get("study") != "sra":
        raise UserError(f"{run} holds a {values.get('study')} study, which has no stages; its report is made anew by the same command.")
    about = ("format", "resect", "study", "model", "model_fingerprint", "inputs_fingerprint")
    return make_config({name: value for name, value in values.items() if name not in about})


def open_folder(out: Path, run_settings: dict[str, Any], *, file: str = "run.toml") -> None:
    """Make the folder, or check that it holds the same run; writes the settings into `file`.

    Raises:
        UserError: the path is a file, or the folder holds a run with other settings or something that is no run.
    """
    text = dump_toml(run_settings)
    if out.exists() and not out.is_dir():
        raise UserError(f"The output path {out} is a file; name a folder for the run.")
    marker = out / file
    if marker.exists():
        if marker.read_text(encoding="utf-8") != text:
            changed = _first_difference(marker.read_text(encoding="utf-8"), text)
            raise UserError(f"The folder {out} holds another run ({changed}); choose another --out, or remove it.")
    elif out.exists() and any(not _is_leftover(path) for path in out.iterdir()):
        raise UserError(f"The folder {out} is not empty and holds no run; choose another --out.")
    else:
        artifacts.write_text(marker, text)


def _first_difference(old: str, new: str) -> str:
    before, after = (dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line) for text in (old, new))
    name = next((n for n in {**before, **after} if before.get(n) != after.get(n)), "settings")
    short = [str(value)[:40] for value in (before.get(name, "unset"), after.get(name, "unset"))]
    return f"{name} was {short[0]}, now {short[1]}"


def _is_leftover(path: Path) -> bool:
    """Whether a file is the unfinished write of a killed run."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def save_about(out: Path, inputs: StudyInputs, config: SRAConfig, materials: Materials) -> dict[str, Any]:
    """Write and return `activations/about.json`: what the activations are of, so that later stages need no model."""
    rows = {"harmful": materials.harmful, "harmless": materials.harmless}
    extract = {"harmful": inputs.harmful.extract, "harmless": inputs.harmless.extract}
    about = {
        "format": ACTIVATIONS,
        "model": inputs.model.name,
        "model_fingerprint": inputs.model.fingerprint,
        "position": config.position,
        "prompts": {side: {"fingerprint": extract[side].fingerprint, "n": len(rows[side])} for side in rows},
        "atoms": [{"name": atom.name, "role": atom.role} for atom in inputs.atoms],
    }
    artifacts.write_json(out / "activations" / "about.json", about)
    return about


def read_about(run: Path) -> dict[str, Any]:
    """Return `activations/about.json`.

    Raises:
        UserError: it is missing or has another format.
    """
    path = run / "activations" / "about.json"
    if not path.is_file():
        raise UserError(
            f"{run} has no activations yet; make them with: resect activations MODEL --harmful FILE --harmless FILE --out {run}"
        )
    about = artifacts.read_json(path)
    if not isinstance(about, dict) or about.get("format") != ACTIVATIONS:
        raise UserError(f"{path} is not of format {ACTIVATIONS!r}; take the activations again.")
    return about


def read_materials(run: Path) -> Materials:
    """Return the materials of a run folder, no model needed; raises `UserError` for a missing or broken file."""
    about = read_about(run)
    tensors = {
        name: artifacts.load_tensors(run / "activations" / f"{name}.safetensors", format=TENSORS, axes={key: 3})[0][key]
        for name, key in MATERIALS.items()
    }
    atoms = about["atoms"]
    return Materials(**tensors, names=tuple(a["name"] for a in atoms), kept=tuple(a["role"] != "target" for a in atoms))


def save_directions(out: Path, about: Mapping[str, Any], raw: Float[Tensor, "layer d_model"]) -> None:
    """Write `directions.safetensors`."""
    header = {**_header(about), "format": artifacts.DIRECTIONS, "method": "mean_difference"}
    artifacts.save_tensors(out / "directions.safetensors", {"vectors": raw[:, None, :].contiguous()}, header)


def save_cleaning(
    out: Path, about: Mapping[str, Any], materials: Materials, cleaned: Float[Tensor, "layer d_model"], *, method: str, softness: float
) -> None:
    """Write `cleaning.safetensors`: the cleaned direction, and the atoms and the harmless mean it can be compared with."""
    tensors = {
        "vectors": cleaned[:, None, :].contiguous(),
        "atoms": materials.atoms.contiguous(),
        "harmless_mean": materials.harmless.double().mean(0).float(),
    }
    header = {**_header(about), "format": CLEANING, "method": method, "softness": softness, "atoms": [a["name"] for a in about["atoms"]]}
    artifacts.save_tensors(out / "cleaning.safetensors", tensors, header)


def save_edit(
    out: Path, about: Mapping[str, Any], plan: EditPlan, *, arm: str, choice: Mapping[str, Any], proof: Mapping[str, Any]
) -> None:
    """Write `edit.safetensors`, `edit.json` and `edit_proof.json`.

    `choice` says how the edit was made, as `study.json` holds it for every arm; `proof` is the document of its proof by hooks.
    """
    tensors, description = plan.to_tensors()
    origin = {key: about[key] for key in ("model", "model_fingerprint")}
    # A kill in between must not leave the proof of an older edit beside the new one.
    (out / PROOF).unlink(missing_ok=True)
    artifacts.save_tensors(out / "edit.safetensors", tensors, {"format": description["format"], "arm": arm})
    artifacts.write_json(out / "edit.json", {**description, **origin, "arm": arm, "choice": choice})
    artifacts.write_json(out / PROOF, {**proof, **origin, "arm": arm, "form": "hooks"})


def read_edit(run: Path) -> tuple[EditPlan, dict[str, Any]]:
    """Return the edit of a run folder and `edit.json`.

    Raises:
        UserError: there is none yet, or its files are broken.
    """
    if not (run / "edit.json").is_file():
        raise UserError(f"{run} has no edit yet; make one with: resect edit {run}")
    description = artifacts.read_json(run / "edit.json")
    if not isinstance(description, dict) or not isinstance(description.get("edits"), list):
        raise UserError(f"{run / 'edit.json'} lists no edits; make it again with: resect edit {run}")
    tensors, _ = artifacts.load_tensors(run / "edit.safetensors", format=str(description.get("format")))
    return EditPlan.from_tensors(tensors, description), description


def _header(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("model", "model_fingerprint", "position", "prompts")}


def finish(out: Path) -> None:
    """Write the manifest: the SHA-256 of every file of the run but the manifest and the timings. A folder without one is unfinished."""
    found = [p for p in out.rglob("*") if p.is_file()]
    for leftover in filter(_is_leftover, found):
        leftover.unlink()
    files = sorted(p for p in found if p.name not in UNLISTED and not _is_leftover(p))
    hashes = {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    artifacts.write_json(out / MANIFEST, {"format": RUN, "resect": __version__, "files": hashes})
