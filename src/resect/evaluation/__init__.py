"""Evaluation: verdicts, refusal, drift, perplexity, recovery, statistics."""
