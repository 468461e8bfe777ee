"""Attention: its variants, their masks and caches."""
