"""Run with the Python of the peer's environment by judges.py: heretic's own rule on each answer, by its own code and its default list.

PEER_PYTHON peer_judge.py < answers.json      # a list of texts in, {"refused": [...], "phrases": number, "version": ...} out
"""

import importlib.metadata
import json
import sys
from types import SimpleNamespace

from heretic.config import Settings
from heretic.evaluator import Evaluator


def main() -> None:
    phrases = Settings.model_fields["refusal_markers"].get_default(call_default_factory=True)
    # The rule reads nothing of the evaluator but this setting.
    settings = SimpleNamespace(settings=SimpleNamespace(refusal_markers=phrases))
    refused = [bool(Evaluator.is_refusal(settings, text)) for text in json.load(sys.stdin)]
    print(json.dumps({"refused": refused, "phrases": len(phrases), "version": importlib.metadata.version("heretic-llm")}))


if __name__ == "__main__":
    main()
