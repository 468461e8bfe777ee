"""Hyperparameter search with Optuna: each trial runs in its own process, and pruned trials record a reason."""
