"""What run.py and sweep.py do with a command line."""
