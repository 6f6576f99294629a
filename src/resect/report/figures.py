"""Every figure with its one-line caption and the sentence that stands in its place where the run has no data for it."""

from collections.abc import Callable
from dataclasses import dataclass

from resect.report import charts, charts_capability, charts_layers, charts_passes


@dataclass(frozen=True)
class FigureSpec:
    """Name, title and caption of a figure, what draws it, and what is said without data."""

    name: str
    title: str
    caption: str
    missing: str
    draw: Callable[..., charts.Chart | None]


FIGURES = (
    FigureSpec(
        "tradeoff",
        "Refusal rate against first-token KL for every arm",
        "Down and left is better: fewer refusals for less drift. Across: first-token KL from the base model in nats, log "
        "scale, zero drawn at the left edge. "
        "Up: share of harmful test prompts refused. Thin lines run over strength; a large mark with bars is the setting chosen "
        "on validation, with 95 % intervals; controls are dashed.",
        "No arm has both a refusal rate and a KL above zero in this run.",
        charts.tradeoff,
    ),
    FigureSpec(
        "strength",
        "Strength by layer for every arm",
        "Look for where each arm edits, and how hard. Across: layer. Up: strength γ, no unit; 1 (dashed) removes the "
        "component, above 1 overshoots, 0 leaves the layer alone.",
        "No arm recorded its strength by layer.",
        charts_layers.strength_by_layer,
    ),
    FigureSpec(
        "perplexity",
        "Change of perplexity by capability",
        "A mark away from zero is a capability that the edit changed; right is damage. Across: change of perplexity per token "
        "against base, in percent. "
        "The intervals of the values are in the table of all numbers.",
        "No perplexity was measured in this run.",
        charts_capability.perplexity_change,
    ),
    FigureSpec(
        "topics",
        "Drift by topic",
        "A topic far to the right is where an edit leaks. Across: mean first-token KL from the base model in nats, log scale, "
        "with 95 % intervals (n on hover).",
        "Drift by topic was not measured: the prompts of this run carry no topics.",
        charts_capability.topic_drift,
    ),
    FigureSpec(
        "lambda",
        "Sweep of the ridge λ",
        "Small λ removes all of the atoms, large λ leaves the raw direction (cosine 1): look for a flat stretch. Rates as "
        "share of prompts, KL in nats, 95 % intervals.",
        "λ was not swept in this run.",
        charts_layers.lambda_sweep,
    ),
    FigureSpec(
        "passes",
        "Atom spectrum by pass",
        "Targets that fall while others rise mean that refusal changed its ground between passes. Across: pass. Up: ridge "
        "length of the direction along the atom, in activation units; the eight largest.",
        "Only one direction was fitted: this run made no further passes.",
        charts_passes.pass_spectrum,
    ),
    FigureSpec(
        "r_squared",
        "R² of the raw direction on the atoms by layer",
        "High R² means that the atoms explain much of the raw direction, so cleaning has much to remove. R² is a share without "
        "unit; the right panel counts atoms.",
        "R² on the atoms was not recorded.",
        charts_layers.r_squared,
    ),
    FigureSpec(
        "ceilings",
        "Ceilings of recovery",
        "Reference points for recovery: what edits that know the twin reach. Read sra (dashed) against these curves. Up: "
        "shares of harmful test prompts, 95 % intervals.",
        "No ceilings: they need the helpful-only twin of a model organism, and this model has none.",
        charts_passes.ceilings,
    ),
    FigureSpec(
        "verdicts",
        "Verdicts by arm",
        "An edit that only moves refusals into evasive or degenerate has not worked. Across: share of the harmful test prompts "
        "(counts on hover).",
        "No verdicts were counted.",
        charts.verdict_bars,
    ),
)
