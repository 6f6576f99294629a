"""Run with the Python of the peer's environment by capture.py: heretic's own capture of residuals, once for every line read.

    PEER_PYTHON capture_peer.py CHECKPOINT PROMPTS.json SYSTEM OUT.safetensors

A line is a batch size. The answer is one JSON line: seconds of its `get_residuals_batched` over all prompts, which renders and tokenises
them, too. The residuals are written once, so that the caller can see that both captured the same.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import heretic.config
import heretic.model
import torch
import transformers
from heretic.utils import Prompt
from safetensors.torch import save_file


def main() -> None:
    folder, prompts, system, out = sys.argv[1:]
    sys.argv[1:] = []  # heretic's settings read the command line as well
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    asked = [Prompt(system=system, user=text) for text in json.loads(Path(prompts).read_text(encoding="utf-8"))]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        model = heretic.model.Model(heretic.config.Settings(model=folder, seed=0))
    for line in sys.stdin:
        model.settings.batch_size = int(line)
        start = time.perf_counter()
        residuals = model.get_residuals_batched(asked)
        spent = time.perf_counter() - start
        if not Path(out).exists():
            save_file({"residuals": residuals.contiguous()}, out)
        print(json.dumps({"seconds": spent}), flush=True)


if __name__ == "__main__":
    main()
