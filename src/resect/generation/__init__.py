"""Greedy responses, exactly those of plain greedy decoding, and the shortcuts that make them fast.

Decoding is always the argmax of the raw logits: temperature, penalties and other processors of a generation config are ignored, since
they would make two arms differ for reasons other than the edit.
"""

from resect.generation.decoding import Stop
from resect.generation.drafts import Drafts
from resect.generation.engine import respond
from resect.generation.response import Response, read
from resect.generation.shortcuts import NONE, Shortcuts

__all__ = ["NONE", "Drafts", "Response", "Shortcuts", "Stop", "read", "respond"]
