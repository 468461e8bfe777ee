"""A ranking: whether one dataset ranks models as another does, as sentences, a page and JSON.

correlation.py   rank correlations with their intervals, and the pairs of models that change places
cells.py         the runs of a model on a dataset, and how the datasets agree
report.py        report.html, report.json and the terminal
"""
