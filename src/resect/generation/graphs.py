"""A decoding step that is recorded once and then replayed: what launching its kernels one by one costs is saved.

A record holds whatever the hooks on the network did when it was made, at the addresses where the tensors were. So it belongs to the batch
that it was made for, is dropped when rows leave that batch, and never outlives an edit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from resect.errors import UserError
from resect.generation.budget import out_of_memory

Step = Callable[[], None]
"""A step reads and writes tensors that stay where they are, and nothing else."""
Recorder = Callable[[Step], Step]
"""Makes of a step what does the same when called."""


def as_it_is(step: Step) -> Step:
    """Return the step itself: nothing is recorded."""
    return step


class CudaGraph:
    """A step on a CUDA device: the first call runs it, the second records it, and from then on it is replayed."""

    def __init__(self, step: Step, *, device: torch.device) -> None:
        self._step, self._device, self._warm = step, device, False
        self._graph: Any = None

    def __call__(self) -> None:
        """Do the step."""
        with torch.cuda.device(self._device):
            if not self._warm:
                self._warm_up()
                return
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                self._record(self._graph)
            self._graph.replay()

    def _warm_up(self) -> None:
        # What only a first call does (workspaces, factors of edits brought to the device) must not be recorded. The step counts.
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._step()
        here.wait_stream(aside)
        self._warm = True

    def _record(self, graph: Any) -> None:
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"A decoding step of this model cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}); take graphs out of the "
                "setting shortcuts."
            ) from error


def can_be_recorded(network: nn.Module) -> bool:
    """Return whether steps of a network can be CUDA graphs: it lies on one device, and that is a CUDA one."""
    devices = {p.device for p in network.parameters()}
    return len(devices) == 1 and next(iter(devices)).type == "cuda"
