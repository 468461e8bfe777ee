"""Published findings and what became of them here.

outcomes.py     what a report says about each prediction, and the decision: replicated, contradicted or undecided
rows.py         the ledger of findings: a row for each test
page.py         the page that is made of the rows: Markdown, HTML and the terminal
"""
