"""Find, clean, ablate and measure refusal directions in language models."""

__version__ = "0.1.0"
