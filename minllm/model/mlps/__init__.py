"""Modules that work on each token by itself."""
