"""A study of learning rates: how the loss of each arm depends on the rate, as sentences, a page and JSON.

curves.py   the losses of an arm at each rate, the values that are compared, and the contests between arms
report.py   report.html, report.json and the terminal
"""
