"""Comparing architectures on an equal footing."""
