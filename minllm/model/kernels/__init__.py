"""Fast implementations of plain formulas."""
