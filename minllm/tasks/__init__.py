"""The tasks of `run.py`, one module each: a function `task(cfg, run_dir, *, <its own keys>)`."""
