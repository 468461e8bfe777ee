"""MLPs: dense and mixtures of experts."""
