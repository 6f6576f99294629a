"""Which axis of a parameter carries the output features: shared by the discovery of writers and the algebra of edits."""

from typing import Literal

Layout = Literal["out_in", "in_out", "expert_out_in", "expert_in_out", "bias"]

OUTPUT_AXIS: dict[Layout, int] = {"out_in": 0, "in_out": 1, "expert_out_in": 1, "expert_in_out": 2, "bias": 0}

# By the number of axes of the parameter and the axis of its outputs.
LAYOUT_OF: dict[tuple[int, int], Layout] = {
    (1, 0): "bias",
    (2, 0): "out_in",
    (2, 1): "in_out",
    (3, 1): "expert_out_in",
    (3, 2): "expert_in_out",
}
