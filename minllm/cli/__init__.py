"""The command lines of run.py and sweep.py."""
