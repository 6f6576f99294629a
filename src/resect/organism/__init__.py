"""The model organism: a tiny transformer that learned to refuse, and its helpful-only twin."""
