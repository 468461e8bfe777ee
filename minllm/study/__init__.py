"""Comparing runs: statistics and reports."""
