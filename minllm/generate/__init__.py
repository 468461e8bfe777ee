"""Continuing texts with a trained model."""

from minllm.generate.generate import generate

__all__ = ["generate"]
