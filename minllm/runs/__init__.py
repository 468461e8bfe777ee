"""A run's folder on disk: what is in it, how it is found, and what became of it."""
