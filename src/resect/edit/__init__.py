"""Edits: one plan, several ways to apply it."""
