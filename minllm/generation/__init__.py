"""Continuing texts with a trained model."""
