"""A profile: what each mixer does on each probe, as sentences, a page and JSON.

cells.py        the runs of a mixer on a probe, their accuracy, and what became of them
sentences.py    the same in words
heatmap.py      mixers × probes as an SVG picture
curves.py       accuracy against difficulty, as SVG pictures
report.py       report.html, report.json and the terminal
"""
