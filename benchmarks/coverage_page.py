"""The rows of the coverage walk, as a table in the terminal and, beside those of the peer tool, as docs/architectures.md.

python benchmarks/coverage_page.py      # writes docs/architectures.md from results/coverage.json and results/peer_coverage.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent / "results"
OURS, PEERS = _RESULTS / "coverage.json", _RESULTS / "peer_coverage.json"
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

SETTINGS = ("default", "no_row_normalization")
_FIGURES = ("proof", "bake", "stream", "adapter", "bake_left")

Row = Mapping[str, Any]


def publish() -> None:
    """Write docs/architectures.md from the results that are there; of the peer only rows of the same networks as ours."""
    ours = json.loads(OURS.read_text(encoding="utf-8"))
    theirs = json.loads(PEERS.read_text(encoding="utf-8")) if PEERS.is_file() else {"families": {}, "versions": {}}
    recipes = {row["name"]: row["recipe"] for row in ours["families"]}
    peer = {name: row for name, row in theirs["families"].items() if row.get("recipe") == recipes.get(name, row.get("recipe"))}
    PAGE.write_text(page(ours, theirs["versions"], peer), encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """Return the table as plain text: family, status, figures, reason."""
    lines = [f"{'family':26} {'status':10} " + " ".join(f"{name:>9}" for name in _FIGURES)]
    for row in rows:
        figures = " ".join(f"{_figure(row, name):>9}" for name in _FIGURES)
        lines.append(f"{row['name']:26} {row['status']:10} {figures}  {row['reason']}".rstrip())
    return "\n".join(lines)


def peer_table(ours: Sequence[Row], peer: Mapping[str, Row]) -> str:
    """Return what resect leaves (`bake_left` of coverage.py) and what heretic leaves with and without its row normalisation."""
    resect = {row["name"]: _figure(row, "bake_left") or row["status"] for row in ours}
    lines = [f"{'family':26} {'resect':>9} {'default':>24} {'no rows':>24}  edited by heretic, or why not"]
    for name, row in peer.items():
        default, plain = (_peer(peer, name, setting) for setting in SETTINGS)
        note = ", ".join(row["default"].get("touched", ())) or row["default"]["error"]
        lines.append(f"{name:26} {resect.get(name, ''):>9} {default:>24} {plain:>24}  {note}")
    return "\n".join(lines)


def page(ours: Row, versions: Mapping[str, str], peer: Mapping[str, Row]) -> str:
    """Return docs/architectures.md."""
    rows = ours["families"]
    lines = [*_introduction(ours), *_peer_caption(rows, versions, peer), "## Passed", ""]
    heading = ("family", "class", "proof error", "logits: baked", "on disk", "adapter", "left: resect")
    heading += ("left: heretic", "left: heretic, no row norms", "writers of a block")
    lines += [_cells(heading), _cells("---" for _ in heading)]
    lines += [_passed(row, peer) for row in rows if row["status"] == "passed"]
    for status, title in (("refused", "Refused by name"), ("failed", "Failed"), ("not built", "Not built")):
        chosen = [row for row in rows if row["status"] == status]
        if chosen:
            heading = ("family", "class", "reason", "left: heretic", "left: heretic, no row norms")
            lines += ["", f"## {title}", "", _cells(heading), _cells("---" for _ in heading)]
            lines += [_cells((row["name"], row["network"], row["reason"], *_left_by_peer(peer, row["name"]))) for row in chosen]
    return "\n".join([*lines, ""])


def _introduction(ours: Row) -> list[str]:
    share = f"{100 * ours['passed'] / ours['built']:.1f} %"
    return [
        "# Architectures",
        "",
        "Written by `python benchmarks/coverage.py --peer`, which builds every causal and image-text-to-text family of the installed",
        f"transformers ({ours['transformers']}) tiny and random, in float32, from its configuration class alone. There is no list of",
        "supported models in the code: writers are found by a probe and proven, and what cannot be proven is refused by name.",
        "",
        f"**{ours['attempted']} families attempted, {ours['built']} built, {ours['passed']} passed everything ({share} of those built),"
        f" {ours['refused']} refused by name, {ours['failed']} failed.**",
        "",
        "Passed means: every block's writers add up to what it adds to the residual stream; logits under hooks, after baking and from",
        "the checkpoint edited on disk agree to 1e-5 (relative); after removing a random direction each block adds at most 1e-6 of what",
        "it added along it before, measured on the stream; the same edit again changes nothing; all other parameters are bitwise the same.",
        "Where moving every number by a part of one ulp moves the logits by more than half of that, other weights are drawn.",
        f"For {ours['adapters']} of them a PEFT adapter gives the same logits too; the others say why there is none.",
        "",
        "Not built are encoder-decoders, encoders that become language models only on request, networks that need an image, and what",
        "its configuration class does not build. Families that read both ways, or norm the stream after every sum, are built, and refused.",
        "",
        "Mixed means that the block weighs streams and writers anew at each token (several residual streams, scalar gates). What such a",
        "block adds is its output less what it carries over from its input; the edit removes the direction from that and leaves what is",
        "carried over, which in gemma3n includes a normed copy of the stream.",
        "",
    ]


def _peer_caption(rows: Sequence[Row], versions: Mapping[str, str], peer: Mapping[str, Row]) -> list[str]:
    """Return what the peer's columns say and do not say, with counts over the families that both could be tried on."""
    if not peer:
        return []
    tried = [row["name"] for row in rows if row["status"] != "not built" and row["name"] in peer]
    strange = sum(peer[name]["default"]["status"] in ("unknown to its transformers", "does not run without it") for name in tried)
    edited = {s: [peer[name][s]["left_max"] for name in tried if peer[name][s]["status"] == "edited"] for s in SETTINGS}
    default, plain = (sum(left <= 1e-3 for left in edited[setting]) for setting in SETTINGS)
    trained = ", ".join(_left_by_peer(peer, "organism"))
    return [
        "## Beside heretic",
        "",
        f"heretic-llm {versions['heretic-llm']}, an outside program in its own environment (transformers {versions['transformers']}),",
        f"on the same checkpoints with the same direction, at weight 1 in every block. Of {len(tried)} families {strange} are not known to",
        f"its transformers or do not run in it; of the other {len(tried) - strange} it edited {len(edited['default'])}. A column gives its",
        "worst block: what this still adds along the direction, of what it added before, on equal inputs. At most 1e-3 is left in",
        f"every block of {default} families with its default, which gives each row of a weight its old norm and so puts part of the",
        f"direction back, and of {plain} without that.",
        "",
        "To read this fairly: heretic does not promise an exact removal. It searches for strengths by layer and judges by refusals and",
        "KL; here it made one edit that it can make, and no other test of this page was put to it. Tiny random weights exaggerate",
        "what row norms put back, for the direction is a large part of short rows. On the shipped organism, which is trained, the two",
        f"columns are {trained}. Near 1 a writer was not edited (stacked experts, other names), or a norm behind it not allowed for.",
        "",
    ]


def _passed(row: Row, peer: Mapping[str, Row]) -> str:
    figures = [_figure(row, name) for name in ("proof", "bake", "stream")]
    adapter = _figure(row, "adapter") or row["forms"]["adapter"]
    return _cells(
        (
            row["name"],
            row["network"],
            *figures,
            adapter,
            _figure(row, "bake_left"),
            *_left_by_peer(peer, row["name"]),
            "<br>".join(row["writers"]),
        )
    )


def _left_by_peer(peer: Mapping[str, Row], name: str) -> tuple[str, ...]:
    return tuple(_peer(peer, name, setting) for setting in SETTINGS)


def _peer(peer: Mapping[str, Row], name: str, setting: str) -> str:
    if name not in peer:
        return ""
    row = peer[name][setting]
    return f"{row['left_max']:.0e}" if row["status"] == "edited" else row["status"]


def _figure(row: Row, name: str) -> str:
    return f"{row['figures'][name]:.0e}" if name in row["figures"] else ""


def _cells(values: Any) -> str:
    return "| " + " | ".join(str(value).replace("|", "/") for value in values) + " |"


if __name__ == "__main__":
    publish()
