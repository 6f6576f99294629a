"""The rows of the coverage walk, as a table in the terminal and as docs/architectures.md."""

from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = ("proof", "bake", "stream", "adapter", "bake_left")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as plain text: family, status, figures, reason."""
    lines = [f"{'family':26} {'status':10} " + " ".join(f"{name:>9}" for name in _FIGURES)]
    for row in rows:
        figures = " ".join(f"{_figure(row, name):>9}" for name in _FIGURES)
        lines.append(f"{row['name']:26} {row['status']:10} {figures}  {row['reason']}".rstrip())
    return "\n".join(lines)


def page(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], versions: Mapping[str, str]) -> str:
    """Return docs/architectures.md."""
    passed = [row for row in rows if row["status"] == "passed"]
    lines = [
        "# Architectures",
        "",
        "Written by `python benchmarks/coverage.py`, which builds every causal and image-text-to-text family of the installed transformers",
        f"({versions['transformers']}) tiny and random, in float32, from its configuration class alone. There is no list of supported",
        "models in the code: writers are found by a probe and proven, and what cannot be proven is refused by name.",
        "",
        f"**{counts['attempted']} families attempted, {counts['built']} built, {counts['passed']} passed everything,"
        f" {counts['refused']} refused by name, {counts['failed']} failed.**",
        "",
        "Passed means: every block's writers add up to what it adds to the residual stream; logits under hooks, after baking and from",
        "the checkpoint edited on disk agree to 1e-5 (relative); after removing a random direction each block adds at most 1e-6 of what",
        "it added along it before, measured on the stream; the same edit again changes nothing; all other parameters are bitwise the same.",
        f"For {counts['adapters']} of them a PEFT adapter gives the same logits too; the others say why there is none.",
        "",
        "Mixed means that the block weighs streams and writers anew at each token (several residual streams, scalar gates). What such a",
        "block adds is its output less what it carries over from its input; the edit removes the direction from that and leaves what is",
        "carried over, which in gemma3n includes a normed copy of the stream.",
        "",
        "## Passed",
        "",
        "| family | class | proof error | logits: baked | on disk | adapter | left along the direction | writers of a block |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['name']} | {row['network']} | {_figure(row, 'proof')} | {_figure(row, 'bake')} | {_figure(row, 'stream')} |"
        f" {_adapter(row)} | {_figure(row, 'bake_left')} | {'<br>'.join(row['writers'])} |"
        for row in passed
    ]
    for status, title in (("refused", "Refused by name"), ("failed", "Failed"), ("not built", "Not built")):
        chosen = [row for row in rows if row["status"] == status]
        if chosen:
            lines += ["", f"## {title}", "", "| family | class | reason |", "| --- | --- | --- |"]
            lines += [f"| {row['name']} | {row['network']} | {row['reason'].replace('|', '/')} |" for row in chosen]
    return "\n".join([*lines, ""])


def _figure(row: Mapping[str, Any], name: str) -> str:
    return f"{row['figures'][name]:.0e}" if name in row["figures"] else ""


def _adapter(row: Mapping[str, Any]) -> str:
    return _figure(row, "adapter") or row["forms"]["adapter"].replace("|", "/")
