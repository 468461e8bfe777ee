"""Searching: Optuna asks, a process of its own answers, and what can't be answered is pruned with a reason."""
