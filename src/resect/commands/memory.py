"""Predicted memory beside what the machine has: for a study at the default settings, stage by stage."""

import os
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from resect.atoms import shipped_atoms
from resect.commands import console
from resect.config import SRAConfig
from resect.evaluation.forced import _MAX_LOGITS as MAX_LOGITS
from resect.models.memory import Stage, Workload, predict
from resect.studies.forecast import BACKWARD, LABELS

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use."""


def memory_of(network: PreTrainedModel, *, prompt_tokens: int, device: torch.device) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the memory report of a network without data as JSON, and one sentence for every stage that does not fit the machine.

    Raises:
        UserError: a network whose passes cannot be run without data.
    """
    work = study_workload(prompt_tokens)
    stages = predict(network, work, on_cpu=device.type == "cpu")
    has = {"device": device_bytes(device), "host": host_bytes()}
    report = {
        "prompt_tokens": prompt_tokens,
        "prompts": len(work.tokens),
        "batch_tokens": work.batch_tokens,
        "new_tokens": work.new_tokens,
        "device": str(device),
        "machine": has,
        "stages": [{"stage": s.name, "device": s.device, "host": s.host} for s in stages],
    }
    return report, tuple(note for stage in stages for note in _too_large(stage, has, on_cpu=device.type == "cpu"))


def study_workload(prompt_tokens: int) -> Workload:
    """Return what a study at the default settings asks of a model, every prompt being that long."""
    config = SRAConfig()
    side = config.extract_prompts + config.validation_prompts + config.test_prompts
    atoms = sum(len(atom.positive) + len(atom.negative) for atom in shipped_atoms())
    return Workload(
        tokens=(prompt_tokens,) * 2 * max(config.extract_prompts, config.test_prompts),
        batch_tokens=config.batch_tokens,
        new_tokens=config.max_new_tokens,
        captured=2 * config.extract_prompts + atoms,
        observed=2 * side,
        learnt=2 * (side - config.test_prompts),
        scored=config.test_prompts,
        forced=config.kl_tokens,
        logits_at_once=MAX_LOGITS,
        backward_tokens=config.batch_tokens // BACKWARD,
        followed=LABELS,
    )


def device_bytes(device: torch.device) -> int:
    """Return the memory of an accelerator; of the processor the main memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else host_bytes()


def host_bytes() -> int:
    """Return the main memory that this process may use: the machine's, or less where a container has a limit."""
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *(int(text) for text in limits if text.isdigit())])


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table."""
    title = (
        f"Memory at the peak of each stage, predicted for prompts of {report['prompt_tokens']} tokens at the default settings; there are "
        f"{size(report['machine']['device'])} on {report['device']}, {size(report['machine']['host'])} in main memory"
    )
    made = console.table("stage", f"on {report['device']}", "in main memory besides", title=title)
    for row in report["stages"]:
        made.add_row(row["stage"], size(row["device"]), size(row["host"]))
    return made


def size(count: int) -> str:
    """Return bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _too_large(stage: Stage, has: dict[str, int], *, on_cpu: bool) -> list[str]:
    needs = {"device": stage.total(on_cpu=on_cpu), "host": 0 if on_cpu else stage.host}
    where = {"device": "this machine" if on_cpu else "the device", "host": "this machine"}
    return [
        f"Stage {stage.name} is predicted to need {size(need)}, more than the {size(has[place])} that {where[place]} has; use a machine "
        "with more memory, a smaller dtype, or lower batch_tokens and the prompt counts of the settings."
        for place, need in needs.items()
        if need > has[place]
    ]
