"""What `run.py` can do: one module a task, each a function `task(cfg, run_dir, *, <its own keys>)`."""
