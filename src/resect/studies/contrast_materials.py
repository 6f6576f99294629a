"""What the arms of the contrast study are made from: activations of the three sides, and which rows each baseline subtracts."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resect.activations import capture
from resect.config import ContrastConfig
from resect.directions import Baseline, baselines
from resect.errors import UserError
from resect.prompts import Prompt
from resect.studies.behaviour import Behaviour
from resect.studies.contrast_inputs import ContrastInputs
from resect.studies.contrast_topics import LEAST_OF_A_CATEGORY, check_maps, counted
from resect.studies.inputs import FEWEST
from resect.studies.lab import Lab
from resect.studies.steps import Steps


@dataclass(frozen=True, eq=False)
class ContrastMaterials:
    """Rows of harmful prompts and of benign ones (matched first), in the order of the prompts, and the held-out pairs.

    `weights` holds one matrix a baseline (`directions.Baseline`), all over equally many rows. `held_out` are test prompts less the mean of
    their matched partners. `left_out` counts what the sides had and the directions are not made from.
    """

    harmful: Float[Tensor, "prompt layer d_model"]
    benign: Float[Tensor, "row layer d_model"]
    prompts: tuple[Prompt, ...]
    benign_prompts: tuple[Prompt, ...]
    matched_count: int
    weights: Mapping[str, Float[Tensor, "prompt row"]]
    held_out: Float[Tensor, "pair layer d_model"]
    left_out: Mapping[str, Any] = field(default_factory=dict)

    @property
    def categories(self) -> tuple[str, ...]:
        """The topics, sorted."""
        return tuple(sorted({str(p.category) for p in self.prompts}))

    @property
    def labels(self) -> Int[Tensor, " prompt"]:
        """The index of each harmful prompt's topic."""
        index = {category: i for i, category in enumerate(self.categories)}
        return torch.tensor([index[str(p.category)] for p in self.prompts])

    def baseline(self, name: str) -> Baseline:
        """One baseline by name, without the rows that it does not use."""
        return Baseline(name, self.benign, self.weights[name]).used

    def mixed(self, share: float) -> Baseline:
        """The unmatched mean with a share of on-topic prompts in it."""
        weights = baselines.mixed(self.weights["matched"], self.weights["unmatched"], share=share)
        return Baseline(f"mixed_{share:g}", self.benign, weights).used

    @property
    def topic_means(self) -> Float[Tensor, "layer topic d_model"]:
        """For every topic the mean of its matched prompts less the unmatched mean: what unmatched directions hold of topics."""
        matched, unmatched = self.benign[: self.matched_count].double(), self.benign[self.matched_count :].double()
        of = [str(p.category) for p in self.benign_prompts[: self.matched_count]]
        means = [matched[[i for i, c in enumerate(of) if c == category]].mean(0) for category in self.categories]
        return (torch.stack(means, dim=1) - unmatched.mean(0)[:, None]).float()


def gather_sides(lab: Lab[ContrastConfig], inputs: ContrastInputs, behaviour: Behaviour, steps: Steps) -> ContrastMaterials:
    """Return the materials, captured from the base model (or read back).

    Raises:
        UserError: too few prompts are left after the behaviour filter.
    """
    config, pairs, taken = lab.config, paired(inputs, lab.config), lab.only("position")
    harmful, matched, unmatched = _equal_sides(inputs, behaviour, pairs=pairs)
    check_maps(counted(harmful), config)

    def rows(name: str, prompts: tuple[Prompt, ...]) -> Tensor:
        return steps.tensors(name, lambda: {"rows": _rows(taken, prompts)}, key=taken.key("rows", prompts))["rows"]

    def held_out() -> dict[str, Tensor]:
        return {"rows": _held_out(taken, inputs)}

    return ContrastMaterials(
        harmful=rows("harmful", harmful),
        benign=rows("benign", matched + unmatched),
        prompts=harmful,
        benign_prompts=matched + unmatched,
        matched_count=len(matched),
        weights=_weights(harmful, matched, unmatched, config, paired=pairs),
        held_out=steps.tensors("held_out", held_out, key=taken.key("held out", inputs.harmful.test, inputs.matched.test))["rows"],
        left_out=_left_out(inputs, behaviour, harmful, matched),
    )


def _equal_sides(inputs: ContrastInputs, behaviour: Behaviour, *, pairs: bool) -> tuple[tuple[Prompt, ...], ...]:
    """Return the harmful, the matched and the unmatched prompts that directions are made from, as many unmatched as matched ones.

    Left out are harmful prompts whose topic (or, where pairs are compared, whose pair) lost its matched prompts to the behaviour filter,
    and matched prompts of topics (or pairs) that no harmful prompt is left of: so all baselines rest on equally many benign prompts.
    """
    benign = behaviour.harmless["extract"].prompts.prompts
    on_topic = {p.key for p in inputs.matched.extract}
    matched, unmatched = tuple(p for p in benign if p.key in on_topic), tuple(p for p in benign if p.key not in on_topic)
    matched = matched[: len(unmatched)]
    harmful = _with_partners(behaviour.harmful["extract"].prompts.prompts, matched, paired=pairs)
    used = {p.category for p in harmful}, {p.pair_id for p in harmful}
    matched = tuple(p for p in matched if p.category in used[0] and (not pairs or p.pair_id in used[1]))
    return harmful, matched, unmatched[: len(matched)]


def _left_out(inputs: ContrastInputs, behaviour: Behaviour, harmful: tuple[Prompt, ...], matched: tuple[Prompt, ...]) -> dict[str, Any]:
    asked, kept = behaviour.harmful["extract"].prompts, {p.key for p in behaviour.harmless["extract"].prompts}
    return {
        "rows": {side: n for side, n in inputs.dropped.items() if n},
        "harmful": len(asked) - len(harmful),
        "matched": sum(p.key in kept for p in inputs.matched.extract) - len(matched),
        "categories": sorted({str(p.category) for p in asked} - {str(p.category) for p in harmful}),
    }


def paired(inputs: ContrastInputs, config: ContrastConfig) -> bool:
    """Return whether the study compares pairs: asked for, and every harmful and matched prompt has a pair id."""
    sides = (inputs.harmful.extract, inputs.matched.extract)
    return "paired" in config.baselines and all(p.pair_id is not None for prompts in sides for p in prompts)


def _with_partners(harmful: tuple[Prompt, ...], matched: tuple[Prompt, ...], *, paired: bool) -> tuple[Prompt, ...]:
    pairs = {p.pair_id for p in matched}
    kept = [p for p in harmful if not paired or p.pair_id in pairs]
    sides = [Counter(p.category for p in side) for side in (kept, matched)]
    large = {category for category in sides[0] if all(side[category] >= LEAST_OF_A_CATEGORY for side in sides)}
    kept = [p for p in kept if p.category in large]
    if len(kept) < FEWEST or len(large) < 2:
        raise UserError(
            f"Only {len(kept)} harmful extraction prompts of {len(large)} categories have a matched prompt that the base answers (with as "
            f"many unmatched ones), and {FEWEST} of two categories are needed: give more prompts, or switch the filter off (--no-filter)."
        )
    return tuple(kept)


def _weights(
    harmful: tuple[Prompt, ...], matched: tuple[Prompt, ...], unmatched: tuple[Prompt, ...], config: ContrastConfig, *, paired: bool
) -> dict[str, Tensor]:
    """Return the weight matrix of every baseline over the matched rows and, after them, the unmatched ones."""
    topics, rows = [p.category for p in harmful], [p.category for p in matched]
    no_matched, no_unmatched = torch.zeros(len(harmful), len(matched)), torch.zeros(len(harmful), len(unmatched))

    def on(weights: Tensor) -> Tensor:
        return torch.cat([weights, no_unmatched.to(weights)], dim=1)

    def off(weights: Tensor) -> Tensor:
        return torch.cat([no_matched.to(weights), weights], dim=1)

    found = {
        "unmatched": off(baselines.unmatched(len(harmful), len(unmatched))),
        "matched": on(baselines.matched(topics, rows)),
        "other_topics": on(baselines.other(topics, rows)),
        "dealt": off(baselines.matched(topics, _dealt(rows, len(unmatched), config.seed))),
    }
    if paired:
        found["paired"] = on(baselines.matched([p.pair_id for p in harmful], [p.pair_id for p in matched]))
    return found


def _dealt(topics: list[str | None], count: int, seed: int) -> list[str | None]:
    """Return a topic for each of `count` unmatched rows, at random and as often as matched rows have it."""
    order = list(topics)
    random.Random(seed).shuffle(order)
    first = list(dict.fromkeys(order))
    rest = cycle(order)
    return [*first, *(next(rest) for _ in range(count))][:count]


def _held_out(lab: Lab[ContrastConfig], inputs: ContrastInputs) -> Float[Tensor, "pair layer d_model"]:
    """Return test prompts less the mean of their matched partners, by pair where there are any, else by category."""
    harmful, matched = inputs.harmful.test.prompts, inputs.matched.test.prompts
    key = "pair_id" if {p.pair_id for p in harmful} & {p.pair_id for p in matched} - {None} else "category"
    there = {getattr(p, key) for p in matched}
    asked = tuple(p for p in harmful if getattr(p, key) in there)
    rows = _rows(lab, asked + matched)
    weights = baselines.matched([getattr(p, key) for p in asked], [getattr(p, key) for p in matched])
    return rows[: len(asked)] - Baseline("held_out", rows[len(asked) :], weights).subtrahends


def _rows(lab: Lab[ContrastConfig], prompts: tuple[Prompt, ...]) -> Float[Tensor, "prompt layer d_model"]:
    return capture(lab.model, lab.render(prompts), position=lab.config.position, batch_tokens=lab.config.batch_tokens).rows
