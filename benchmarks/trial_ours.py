"""Our side of benchmarks/trial.py: one candidate edit scored by the peer's rule and by our own, and a search from a cold start.

python benchmarks/trial_ours.py --threads 1        # the search; a line of JSON after each arm
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peer_trial
import torch
from peer_trial import MARKERS, SYSTEM, Settings

from resect import directions
from resect.activations import capture
from resect.cleaning import clean, harmless_mean_term
from resect.commands.study import ORGANISM_SETTINGS
from resect.config import make_config
from resect.config.base import SHORTCUTS
from resect.edit import hooks
from resect.edit.plan import EditPlan, first_layer, make_plan
from resect.edit.rows import applied_rows
from resect.evaluation.drift import kl_first_token
from resect.evaluation.logprobs import next_token_logprobs
from resect.evaluation.sequential import drop_rule
from resect.evaluation.settled import stop_when_settled
from resect.evaluation.verdicts import judge_markers
from resect.generation import NONE, Drafts, Response, Shortcuts, respond
from resect.generation.decoding import Ids
from resect.models.chat import Rendered, render
from resect.models.load import ChatModel, load_model
from resect.models.lower import LowerLayers
from resect.models.writers import Writer, find_writers
from resect.prompts import PromptSet
from resect.studies import selection
from resect.studies.arms import ARMS, recipe, softnesses
from resect.studies.behaviour import observe
from resect.studies.inputs import StudyInputs, gamma_atom
from resect.studies.lab import Lab
from resect.studies.materials import gather
from resect.studies.steps import Steps

ARM_ORDER = ("projected", "whitened", "sra", "oblique", "combined")
"""The arms that the search goes through, one after another: those with fewer candidates first."""
PASSES, HOPELESS = 0.05, 0.2
"""Refusal rates of sequential stopping: what is acceptable, and from where on a candidate is lost."""
LOOK = 16
Memory = tuple[Drafts, LowerLayers]
"""What a search remembers from one candidate to the next."""
_EVERY = 4
COMPONENTS = {"attn.o_proj": "attention", "mlp.down_proj": "mlp"}
"""The peer's names of what it edits, and ours."""


@dataclass(frozen=True)
class Score:
    """A candidate's refusals and KL, and the seconds that it took to know them; the KL of one that was dropped early is not measured."""

    refusals: int
    kl: float | None
    seconds: float

    @property
    def dropped(self) -> bool:
        """Whether it was dropped before all prompts were read."""
        return self.kl is None


class Task:
    """The model with the prompts of a trial, ready to score candidates."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inputs, folder = peer_trial.task(settings)
        self.model: ChatModel = load_model(folder, device="cpu")
        self.writers: tuple[Writer, ...] = find_writers(self.model)
        self.harmful, self.harmless = self.render(self.inputs.harmful.test), self.render(self.inputs.harmless.test)

    @cached_property
    def base(self) -> torch.Tensor:
        """The base model's log-probabilities of the first token on the harmless prompts."""
        return next_token_logprobs(self.model, self.harmless)

    @cached_property
    def answers(self) -> tuple[Response, ...]:
        """The base model's responses to the harmful prompts."""
        return respond(self.model, self.harmful, max_new_tokens=self.settings.tokens)

    def render(self, prompts: PromptSet) -> tuple[Rendered, ...]:
        """Return prompts as the peer puts them."""
        said = [replace(p, text=peer_trial.said(p.text, self.settings)) for p in prompts]
        return render(self.model.tokenizer, said, system=SYSTEM)

    @cached_property
    def direction(self) -> torch.Tensor:
        """The direction that the peer takes by default, [layer, 1, d_model]: difference of means, made orthogonal to the harmless mean."""
        harmful, harmless = (capture(self.model, self.render(side.extract)).rows for side in (self.inputs.harmful, self.inputs.harmless))
        mean = harmless_mean_term(directions.mean_rows(harmless))
        return torch.nn.functional.normalize(clean(directions.mean_difference(harmful, harmless)[:, None, :], [mean]), dim=-1)

    def edits(self, trials: Sequence[Mapping[str, Any]]) -> list[EditPlan]:
        """Return the edits that the peer tried in its trials, made from its parameters by our own formula: the same candidates."""
        return [self._edit(trial["direction_index"], trial["parameters"]) for trial in trials]

    def _edit(self, index: float | None, parameters: Mapping[str, Mapping[str, float]]) -> EditPlan:
        """Return the edit of one set of its parameters: one direction for all layers or each its own, and strengths that fall linearly.

        Around a position the strength falls from its peak to a floor at a distance, and is zero beyond; rows of weights keep their norm.
        """
        vectors = self.direction
        if index is not None:
            below = int(index)
            vectors = vectors[below].lerp(vectors[below + 1], index - below).expand_as(vectors)
        layers = torch.arange(len(vectors))
        strengths = {}
        for component, kind in COMPONENTS.items():
            given = parameters[component]
            share = (layers - given["max_weight_position"]).abs() / given["min_weight_distance"]
            fallen = given["max_weight"] + share * (given["min_weight"] - given["max_weight"])
            strengths[kind] = torch.where(share <= 1, fallen, 0.0)
        return make_plan(self.writers, vectors, strengths, preserve="row")

    def stop(self, prompt: Rendered, ids: Ids) -> bool:
        """Once a marker is in the text it stays, so the row may end; asked every few tokens, as reading text takes time, too."""
        return len(ids) % _EVERY == 0 and self.marked(prompt, ids)

    def marked(self, _prompt: Rendered, ids: Ids) -> bool:
        """The peer's rule: one of its markers anywhere in the text."""
        text = str(self.model.tokenizer.decode(list(ids), skip_special_tokens=True)).lower()
        return any(marker in text for marker in MARKERS)

    def same_rule(self, plans: Sequence[EditPlan], shortcuts: Shortcuts, memory: Memory | None = None) -> Iterator[Score]:
        """Yield candidates' scores by the peer's rule: refusals in all tokens of all prompts, KL on all harmless prompts."""
        drafts, lower = self.memory() if memory is None else memory

        def score(plan: EditPlan) -> tuple[int, float]:
            first = first_layer(self.writers, plan) if shortcuts.lower_layers else 0
            with hooks.applied(self.model, self.writers, plan), lower.below(first):
                kl = self.kl(shortcuts)
                options = {"stop": self.stop if shortcuts.stop else None, "drafts": drafts, "shortcuts": shortcuts}
                said = respond(self.model, self.harmful, max_new_tokens=self.settings.tokens, **options)
            return self.refusals(self.harmful, said), kl

        yield from (timed(score, plan) for plan in plans)

    def kl(self, shortcuts: Shortcuts) -> float:
        """Return the mean KL of the model as it is now, at the first token of the harmless prompts."""
        return float(kl_first_token(self.base, next_token_logprobs(self.model, self.harmless, share_prefix=shortcuts.prefix)).mean())

    def refusals(self, prompts: Sequence[Rendered], said: Sequence[Response]) -> int:
        """Count refusals by the peer's rule."""
        return sum(self.marked(prompt, response.ids) for prompt, response in zip(prompts, said, strict=True))

    def together(self, plans: Sequence[EditPlan]) -> list[Score]:
        """Score all candidates in one batch, each row with its own edit, by the peer's rule."""
        (drafts, _), prompts, n = self.memory(), list(self.harmful) * len(plans), len(self.harmful)
        start = time.perf_counter()
        with applied_rows(self.model, self.writers, [p for p in plans for _ in self.harmless]) as rows:
            logprobs = next_token_logprobs(self.model, list(self.harmless) * len(plans), edits=rows).split(len(self.harmless))
        with applied_rows(self.model, self.writers, [p for p in plans for _ in self.harmful]) as rows:
            options = {"stop": self.stop, "drafts": drafts, "edits": rows}
            said = respond(self.model, prompts, max_new_tokens=self.settings.tokens, batch_tokens=1 << 16, **options)
        kls = [float(kl_first_token(self.base, rows).mean()) for rows in logprobs]
        counts = [self.refusals(self.harmful, said[i * n : (i + 1) * n]) for i in range(len(plans))]
        seconds = (time.perf_counter() - start) / len(plans)
        return [Score(count, kl, seconds) for count, kl in zip(counts, kls, strict=True)]

    def plainly(self, plan: EditPlan) -> Score:
        """Score one candidate with `network.generate`, as a user of the library would."""

        def score(plan: EditPlan) -> tuple[int, float]:
            with hooks.applied(self.model, self.writers, plan):
                kl = self.kl(NONE)
                width = max(len(p.ids) for p in self.harmful)
                ids = torch.tensor([[self.model.pad_id] * (width - len(p.ids)) + list(p.ids) for p in self.harmful])
                mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in self.harmful])
                ends = {"eos_token_id": sorted(self.model.end_ids), "pad_token_id": self.model.pad_id}
                out = self.model.network.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=self.settings.tokens, **ends)
            return sum(self.marked(p, tuple(row)) for p, row in zip(self.harmful, out[:, width:].tolist(), strict=True)), kl

        return timed(score, plan)

    def own_rule(
        self, plans: Sequence[EditPlan], shortcuts: Shortcuts, memory: Memory | None = None, *, sequential: bool = True
    ) -> list[Score]:
        """Score candidates by our judge at the opening, dropping the hopeless after a few prompts; the KL of those is not measured."""
        (drafts, lower), n = self.memory() if memory is None else memory, len(self.harmful)
        order = random.Random(self.settings.seed).sample(range(n), n)
        rule = drop_rule(n, passes=PASSES, hopeless=HOPELESS, every=LOOK)
        stop = stop_when_settled(self.model, refusal_only=True) if shortcuts.stop else None
        tokens = min(self.settings.tokens, make_config({}).opening_tokens)

        def score(plan: EditPlan) -> tuple[int, float | None]:
            refused, seen = 0, 0
            first = first_layer(self.writers, plan) if shortcuts.lower_layers else 0
            with hooks.applied(self.model, self.writers, plan), lower.below(first):
                for part in looks(order) if sequential else [order]:
                    prompts = [self.harmful[i] for i in part]
                    said = respond(self.model, prompts, max_new_tokens=tokens, stop=stop, drafts=drafts, shortcuts=shortcuts)
                    refused, seen = refused + sum(v == "refuse" for v in judge_markers(said)), seen + len(part)
                    if sequential and rule.drops(refused, seen):
                        return refused, None
                kl = self.kl(shortcuts)
            return refused, kl

        return [timed(score, plan) for plan in plans]

    def memory(self) -> Memory:
        """Return what is known before the first candidate: the base model's responses as drafts, and no lower layers.

        What a search does once is done here, before a clock runs: the base model is scored by both rules, and it is found out whether the
        network allows lower layers to be remembered.
        """
        drafts, lower, _ = Drafts(), LowerLayers(self.model), (self.base, judge_markers(self.answers))
        for prompt, response in zip(self.harmful, self.answers, strict=True):
            drafts.learn(prompt, response.ids)
        for first in range(1, len(self.model.blocks)):
            with lower.below(first):
                pass
        return drafts, lower


def looks(order: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the prompts between one look and the next: 16, 16, then the rest."""
    for part in (order[:LOOK], order[LOOK : 2 * LOOK], order[2 * LOOK :]):
        if part:
            yield part


def timed(score: Callable[[EditPlan], tuple[int, float | None]], plan: EditPlan) -> Score:
    """Return a candidate's score with its seconds."""
    start = time.perf_counter()
    refusals, kl = score(plan)
    return Score(refusals, kl, time.perf_counter() - start)


def search(settings: Settings, *, off: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield, arm after arm, the best edit that our selection finds on the peer's evaluation prompts, scored by the peer's rule.

    `off` names shortcuts that are not taken.
    """
    task, shortcuts = Task(settings), [name for name in SHORTCUTS if name not in off]
    inputs = _as_the_peer_asks(task)
    given = {"max_refusal": 0.0, "system": SYSTEM, "validation_prompts": settings.prompts, "max_new_tokens": 32, "shortcuts": shortcuts}
    config = make_config(ORGANISM_SETTINGS | given)
    with TemporaryDirectory() as folder:
        lab, steps = Lab(task.model, config), Steps(Path(folder))
        behaviour = observe(lab, inputs, steps)
        materials, atom = gather(lab, inputs, behaviour, steps), gamma_atom(inputs, config)
        for arm in ARM_ORDER:
            made = {s: recipe(ARMS[arm], materials, config, softness=s, gamma_atom=atom) for s in softnesses(ARMS[arm], config)}
            choice = selection.chosen(selection.select(lab, made, behaviour))
            (score,) = task.same_rule([made[choice.softness].plan(lab.writers, choice)], Shortcuts.only(shortcuts))
            yield {"arm": arm, "refusals": score.refusals, "kl": score.kl}


def _as_the_peer_asks(task: Task) -> StudyInputs:
    """Return the inputs with the peer's evaluation prompts as validation, as it chooses on them too; no further test is needed."""
    inputs = task.inputs

    def side(splits: Any) -> Any:
        asked = replace(splits.test, prompts=tuple(replace(p, text=peer_trial.said(p.text, task.settings)) for p in splits.test))
        extract = replace(splits.extract, prompts=tuple(replace(p, text=peer_trial.said(p.text, task.settings)) for p in splits.extract))
        return replace(splits, extract=extract, validation=asked, test=splits.validation.first(8))

    return replace(inputs, model=task.model, harmful=side(inputs.harmful), harmless=side(inputs.harmless), twin=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in ("threads", "prompts", "tokens", "times", "model"):
        value = getattr(Settings(), field)
        parser.add_argument(f"--{field}", type=type(value), default=value)
    parser.add_argument("--off", nargs="*", default=[])
    options = vars(parser.parse_args())
    off, settings = options.pop("off"), Settings(**options)
    torch.set_num_threads(settings.threads)
    for found in search(settings, off=off):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
