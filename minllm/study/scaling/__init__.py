"""How losses, and differences between arms, depend on scale.

law.py     one arm: L = E + A / N^α + B / D^β, fitted to its runs
trend.py   two arms: their difference at each size, and beyond the largest one
"""
