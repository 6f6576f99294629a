"""Baselines meant to have the magnitude of unmatched and the purity of matched contrast: the second paper's open question.

Each is made from the materials of the contrast study and is one direction a layer, raw norms kept.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from resect import cleaning
from resect.cleaning import KeepTerm
from resect.directions import METHODS, Directions, mean_difference
from resect.studies.contrast_materials import ContrastMaterials

HALVES = 20


def unmatched(materials: ContrastMaterials) -> Tensor:
    """Return the unmatched difference of means [layer, d_model]."""
    return mean_difference(materials.harmful, materials.baseline("unmatched").subtrahends)


def matched(materials: ContrastMaterials) -> Tensor:
    """Return the matched difference of means [layer, d_model]."""
    return mean_difference(materials.harmful, materials.baseline("matched").subtrahends)


def rescaled(materials: ContrastMaterials) -> Directions:
    """Matched direction, unmatched norm."""
    vectors = torch.nn.functional.normalize(matched(materials), dim=-1) * unmatched(materials).norm(dim=-1, keepdim=True)
    return Directions(vectors[:, None], "rescaled")


def topic_free(materials: ContrastMaterials) -> Directions:
    """Unmatched difference, span of the topic means (matched means less the unmatched one) projected out."""
    return _without_topics(materials, KeepTerm("topics", materials.topic_means, 0.0))


def topic_ridge(materials: ContrastMaterials) -> Directions:
    """The same by ridge, in units of the matched difference: only topic parts larger than what matching leaves are taken out."""
    unit = matched(materials).norm(dim=-1)[:, None, None].clamp_min(1e-12)
    return _without_topics(materials, KeepTerm("topics", materials.topic_means / unit, 1.0))


def blend(materials: ContrastMaterials) -> Directions:
    """Both directions at norm 1, each weighed by its split-half cosine (0 where that is negative)."""
    directions = {"unmatched": unmatched(materials), "matched": matched(materials)}
    parts = [
        reliability(materials, name).clamp_min(0)[:, None] * torch.nn.functional.normalize(v, dim=-1) for name, v in directions.items()
    ]
    return Directions(sum(parts[1:], parts[0])[:, None], "blend")


def precision(materials: ContrastMaterials) -> Directions:
    """Matched differences of the topics, pooled with weights that are the inverse of their sampling variance."""
    differences = materials.harmful.double() - materials.baseline("matched").subtrahends.double()
    means, precisions = [], []
    for topic in range(len(materials.categories)):
        rows = differences[materials.labels == topic]
        means.append(rows.mean(0))
        precisions.append(len(rows) / rows.var(0).sum(-1).clamp_min(1e-12))
    weights = torch.stack(precisions) / torch.stack(precisions).sum(0)
    return Directions(torch.einsum("tl,tld->ld", weights, torch.stack(means)).float()[:, None], "precision")


def whitened(materials: ContrastMaterials) -> Directions:
    """Matched difference over the pooled covariance, which holds what varies within a topic."""
    return METHODS["whitened"].find(materials.harmful, materials.baseline("matched"))


PROPOSALS: Mapping[str, Callable[[ContrastMaterials], Directions]] = {
    "topic_free": topic_free,
    "topic_ridge": topic_ridge,
    "blend": blend,
    "precision": precision,
    "whitened": whitened,
}


def matched_rows(materials: ContrastMaterials) -> Tensor:
    """Return the rows of matched prompts."""
    return materials.benign[: materials.matched_count]


def unmatched_rows(materials: ContrastMaterials) -> Tensor:
    """Return the rows of unmatched prompts."""
    return materials.benign[materials.matched_count :]


def reliability(materials: ContrastMaterials, baseline: str) -> Tensor:
    """Return the split-half cosine by layer of the difference of means: of halves of the pairs, or of halves of both sides."""
    if baseline == "matched":
        differences = materials.harmful - materials.baseline("paired").subtrahends
        return split_half(differences, torch.zeros_like(differences))
    return split_half(materials.harmful, unmatched_rows(materials))


def split_half(first: Tensor, second: Tensor) -> Tensor:
    """Return, per layer, the mean cosine of differences of means from two disjoint random halves of both sides."""
    found = []
    for draw in range(HALVES):
        generator = torch.Generator().manual_seed(draw)
        halves = []
        for rows in (first, second):
            order = torch.randperm(len(rows), generator=generator)
            halves.append((rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]))
        ends = [mean_difference(a, b) for a, b in zip(*halves, strict=True)]
        found.append(torch.cosine_similarity(*ends, dim=-1))
    return torch.stack(found).mean(0)


def _without_topics(materials: ContrastMaterials, term: KeepTerm) -> Directions:
    return Directions(cleaning.clean(unmatched(materials)[:, None], [term]), term.name)
