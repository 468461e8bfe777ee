"""Comparing runs: sizing, statistics, reports."""
