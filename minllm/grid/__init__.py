"""Grids, `run.py -m`: every combination of the given values, each in its own process."""
