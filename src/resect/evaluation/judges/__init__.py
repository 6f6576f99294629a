"""Judges: each takes prompts and responses and returns a verdict with its reason for every response. One judge a file."""

from resect.evaluation.judges.classifier import ClassifierJudge, load_classifier
from resect.evaluation.judges.degeneracy import DegeneracyJudge
from resect.evaluation.judges.endpoint import Endpoint, EndpointJudge
from resect.evaluation.judges.log_odds import LogOddsJudge
from resect.evaluation.judges.markers import MarkerJudge
from resect.evaluation.judges.values import Judge, verdicts_of

__all__ = [
    "ClassifierJudge",
    "DegeneracyJudge",
    "Endpoint",
    "EndpointJudge",
    "Judge",
    "LogOddsJudge",
    "MarkerJudge",
    "load_classifier",
    "verdicts_of",
]
