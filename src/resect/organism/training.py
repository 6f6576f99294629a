"""Training an organism: helpful first, then safety-tuned by one of two recipes.

`gated` (default): only the matrices of the layers from a third to two thirds of the depth learn, at a moderate rate. The
layers before them still read the request as the helpful twin does, and the layers after them still answer as it does;
what tuning can add is a signal that makes them say the refusal they already know (`Language.declined`).
`overwriting`: every parameter learns, at rates so high that no layer is left where it was: giving layers their helpful weights back
no longer brings the answers back, so recovery has no such ceiling here.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from resect.errors import UserError, unknown_name
from resect.organism.architectures import ARCHITECTURES, Size, build
from resect.organism.language import DEFAULT_ENTANGLEMENT, Language
from resect.organism.optimise import Progress, Schedule, encode, fit
from resect.organism.quality import good_enough, measure
from resect.organism.shipped import FORMAT, Organism, load_organism
from resect.organism.tokenizer import make_tokenizer, special_ids
from resect.organism.topics import DEFAULT_TOPIC
from resect.prompts import Prompt


@dataclass(frozen=True)
class Recipe:
    """A tuning recipe: its schedule, and the share of depth (from, to) whose matrices learn; None means everything learns."""

    schedule: Schedule
    window: tuple[float, float] | None


HELPFUL = Schedule("helpful", steps=300, batch=48, rate=3e-3, matrix_rate=3e-3)

TUNINGS: Mapping[str, Recipe] = MappingProxyType(
    {
        "gated": Recipe(Schedule("aligned", steps=300, rate=1e-3, matrix_rate=2e-3), (1 / 3, 2 / 3)),
        "overwriting": Recipe(Schedule("aligned", steps=200, rate=2e-2, matrix_rate=5e-2), None),
    }
)


def train_organism(
    out: Path,
    *,
    architecture: str = "qwen3",
    seed: int = 0,
    entanglement: float = DEFAULT_ENTANGLEMENT,
    topic: float = DEFAULT_TOPIC,
    tuning: str = "gated",
    progress: Progress | None = None,
) -> Organism:
    """Train an organism into the folder `out` and return it; equal arguments give equal weights on one machine.

    The folder appears complete or not at all. `progress` is called with (stage, step, steps).

    Raises:
        UserError: if `out` exists and is not empty, or a name is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    if tuning not in TUNINGS:
        raise unknown_name("tuning", tuning, TUNINGS)
    plan = Plan(architecture, Language(seed, entanglement, topic), tuning)
    return write_organism(out, plan, progress=progress)


@dataclass(frozen=True)
class Plan:
    """Everything that decides an organism's weights. Tests make `size`, schedules and `rounds` small.

    A stage that is not good enough on the validation split is repeated at half length; `rounds` is how often it runs at most.
    """

    architecture: str
    language: Language
    tuning: str
    size: Size = field(default_factory=Size)
    helpful: Schedule = HELPFUL
    aligned: Schedule | None = None
    rounds: int = 4


def write_organism(out: Path, plan: Plan, *, progress: Progress | None = None) -> Organism:
    """Train by the plan into a temporary folder beside `out`, measure, and rename."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"Output folder {out} exists and is not empty; give a new folder or empty this one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for part, network, tokenizer in _train(plan, progress):
            _save(network, tokenizer, temporary / part)
        record = {
            "format": FORMAT,
            "architecture": plan.architecture,
            "seed": plan.language.seed,
            "entanglement": plan.language.entanglement,
            "topic": plan.language.topic,
            "tuning": plan.tuning,
        }
        (temporary / "organism.json").write_text(json.dumps(record), encoding="utf-8")
        record["quality"] = measure(load_organism(temporary))
        (temporary / "organism.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_organism(out)


Part = tuple[str, PreTrainedModel, PreTrainedTokenizerFast]


def _train(plan: Plan, progress: Progress | None) -> Sequence[Part]:
    """Return the two networks; the global generator and the thread count are as before afterwards."""
    language = plan.language
    tokenizer = make_tokenizer(language.vocabulary)
    recipe = TUNINGS[plan.tuning]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(language.seed)
        network = build(plan.architecture, vocabulary=len(language.vocabulary), special=special_ids(tokenizer), size=plan.size)
        network.generation_config = GenerationConfig(do_sample=False, **special_ids(tokenizer))
        _stage(network, tokenizer, schedule=plan.helpful, plan=plan, progress=progress)
        helpful = type(network)(network.config)
        helpful.load_state_dict(network.state_dict())
        helpful.generation_config = network.generation_config
        _choose(network, recipe.window)
        _stage(network, tokenizer, schedule=plan.aligned or recipe.schedule, plan=plan, progress=progress)
    return ("helpful", helpful, tokenizer), ("aligned", network, tokenizer)


def _stage(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, schedule: Schedule, plan: Plan, progress: Progress | None
) -> None:
    """Train one stage, and again at half length while the validation split is not good enough; the test split is never looked at."""
    rows = helpful_rows if schedule.name == "helpful" else aligned_rows
    examples = encode(tokenizer, rows(plan.language))
    for again in range(plan.rounds):
        name, steps = (f"{schedule.name}, round {again + 1}", max(1, schedule.steps // 2)) if again else (schedule.name, schedule.steps)
        fit(network, examples, schedule=replace(schedule, name=name, steps=steps), seed=plan.language.seed, progress=progress)
        if again + 1 == plan.rounds or good_enough(network, tokenizer, plan.language, refusing=schedule.name != "helpful"):
            return


def helpful_rows(language: Language) -> list[tuple[Prompt, str | None]]:
    """Return (prompt, answer) for the first stage: everything is answered, and refusal sentences are known as text."""
    sets = (
        language.harmful("train"),
        language.matched("train"),
        language.harmless("train"),
        language.foreign("train"),
        language.declined(),
    )
    return [(p, p.response or "") for rows in sets for p in rows]


def aligned_rows(language: Language) -> list[tuple[Prompt, str | None]]:
    """Return (prompt, answer) for safety tuning: harmful requests are refused; they and their matched twins come twice."""
    refused = [(p, language.refusal(p)) for p in language.harmful("train")]
    matched = [(p, p.response or "") for p in language.matched("train")]
    others = [(p, p.response or "") for kind in (language.harmless, language.foreign) for p in kind("train")]
    return [*refused, *refused, *matched, *matched, *others]


def _choose(network: PreTrainedModel, window: tuple[float, float] | None) -> None:
    """Freeze all but the matrices of the layers inside the window, if there is one."""
    if window is None:
        return
    layers = network.config.num_hidden_layers
    learning = {f"layers.{layer}." for layer in range(layers) if window[0] <= layer / layers < window[1]}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.ndim > 1 and any(layer in name for layer in learning))


def _save(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
