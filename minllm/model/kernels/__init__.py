"""What is written for speed: the same results as the plain formulas, computed another way."""
