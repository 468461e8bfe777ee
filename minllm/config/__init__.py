"""Composes configurations from overrides and resolves them to what is run."""
