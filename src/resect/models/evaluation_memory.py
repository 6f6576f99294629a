"""Memory that an evaluation on a suite needs, predicted before any weight is read. What it keeps does not grow with the prompts."""

from dataclasses import replace

from transformers import PreTrainedModel

from resect.models.memory import Stage, Workload, generation_bytes, kl_bytes, scoring_bytes, shapes, weight_bytes

_JUDGED_AT_ONCE = 32
"""Prompts whose first-token distributions the log-odds judge holds at once."""
_LOG_ODDS = 4 + 3 * 8
"""Bytes a value that they take: as it comes, and three times in float64."""
_COMPARED_AT_ONCE = 1 << 24
"""Values of the distributions of one model that drift holds at once."""


def evaluation_stage(network: PreTrainedModel, work: Workload, *, on_cpu: bool = False) -> Stage:
    """Return what evaluating one model with an edit by hooks holds, weights included, for a network without data.

    `work.tokens` are the lengths of the prompts, `work.forced` the longest continuation that is scored: an answer, a window of text, or the
    tokens along which drift is taken. The most of: decoding; scoring answers; judging by first tokens; reading the two sides of the drift
    a few prompts at a time, and comparing them.
    """
    vocab = network.config.get_text_config(decoder=True).vocab_size
    decoded = max(generation_bytes(network, *shape, new=work.new_tokens, on_cpu=on_cpu) for shape in shapes(work))
    scored = scoring_bytes(network, work, on_cpu=on_cpu)
    judged = replace(work, tokens=work.tokens[:_JUDGED_AT_ONCE], forced=1)
    judging = scoring_bytes(network, judged, on_cpu=on_cpu) + len(judged.tokens) * vocab * _LOG_ODDS
    few = replace(work, tokens=work.tokens[: max(1, _COMPARED_AT_ONCE // (work.forced * vocab))])
    values = len(few.tokens) * work.forced * vocab
    sides = 2 * values * 4
    drift = sides + max(scoring_bytes(network, few, on_cpu=on_cpu), kl_bytes(values))
    return Stage("evaluation", weight_bytes(network) + max(decoded, scored, judging, drift), 0)
