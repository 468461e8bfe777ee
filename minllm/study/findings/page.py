"""The page of findings, made from the rows of the ledger: as Markdown, as HTML, and for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from minllm.page import html, markdown, units
from minllm.study.findings.outcomes import Outcome
from minllm.study.findings.rows import Row, outcomes_of

HEADING = "Findings put to the test"
HEAD = ("claim", "paper", "outcome", "difference", "interval", "pairs", "minutes", "here", "command")
SIDES = "lllrlrrll"
ABOUT = (
    "Each row is a published claim, tested by the search that its file in conf/finding names, with a prediction that"
    " was fixed before the first run. It is replicated if the outcome is what the claim predicts, contradicted if the"
    " claim excludes it, and undecided if the runs settle nothing. Differences are those of the arm from the baseline;"
    " negative ones are better. Repetitions used seeds that weren't used before. A claim about large models may well"
    " fail in models that train in seconds, and this page is about those alone."
)
ARXIV = "https://arxiv.org/abs"
NEVER, CHANGED = "not tested", "not tested since it changed"


@dataclass(frozen=True)
class Entry:
    """A finding as its file describes it.

    digest: of what decides it; rows with another one are of an earlier version of the file
    """

    name: str
    claim: str
    papers: Sequence[str]
    refuted_by: str
    found: str
    digest: str


def to_markdown(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    table = [
        [markdown.plain(entry.claim), papers, *map(markdown.plain, shown), markdown.code(command)]
        for entry, (*shown, command) in zip(entries, cells(entries, rows))
        for papers in [", ".join(f"[{paper}]({ARXIV}/{paper})" for paper in entry.papers)]
    ]
    parts = [f"# {HEADING}", markdown.plain(ABOUT), markdown.table(HEAD, table, SIDES)]
    notes = [f"- {markdown.code(name)}: {markdown.plain(text)}" for name, text in notes_of(entries, rows)]
    if notes:
        parts += ["## What refutes each, and what was found", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def to_html(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    table = [
        [html.escape(entry.claim), papers, *map(html.escape, shown), f"<code>{html.escape(command)}</code>"]
        for entry, (*shown, command) in zip(entries, cells(entries, rows))
        for papers in [", ".join(f'<a href="{ARXIV}/{paper}">{paper}</a>' for paper in entry.papers)]
    ]
    notes = [
        f"<li><code>{html.escape(name)}</code>: {html.escape(text)}</li>"
        for name, text in notes_of(entries, rows)
    ]
    body = [
        f"<h1>{HEADING}</h1>",
        f"<p>{html.escape(ABOUT)}</p>",
        html.table(HEAD, table, SIDES),
        "<h2>What refutes each, and what was found</h2>",
        f"<ul>{''.join(notes)}</ul>",
    ]
    return html.document(HEADING, body, "body { max-width: 90rem; }", plots=False)


def in_a_terminal(entries: Sequence[Entry], rows: Sequence[Row]) -> list[str]:
    table = [
        [entry.name, here, outcome, difference, pairs, minutes]
        for entry, (outcome, difference, _, pairs, minutes, here, _) in zip(entries, cells(entries, rows))
    ]
    head = ("finding", "here", "outcome", "difference", "pairs", "minutes")
    return markdown.fit_to_width(head, table, "lllrrr", shutil.get_terminal_size((80, 24)).columns)


def cells(entries: Sequence[Entry], rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of each finding, without the first two columns."""
    return [cells_of(entry, rows) for entry in entries]


def cells_of(entry: Entry, rows: Sequence[Row]) -> list[str]:
    row, repeated = tests_of(entry, rows)
    if row is None:
        old = any(other.finding == entry.name for other in rows)
        command = f"python sweep.py search=finding finding={entry.name}"
        return [*[units.NONE] * 5, CHANGED if old else NEVER, command]
    outcomes = outcomes_of(row)
    again = [f"{other.decision} again from seed {other.first_seed}" for other in repeated]
    return [
        "; ".join(map(outcome_text, outcomes)),
        "; ".join(units.signed(outcome.difference) for outcome in outcomes),
        "; ".join(units.between(outcome.interval or (None, None)) for outcome in outcomes),
        "; ".join(units.NONE if outcome.pairs is None else str(outcome.pairs) for outcome in outcomes),
        f"{row.minutes:.1f}",
        "; ".join([row.decision, *again]),
        row.command,
    ]


def tests_of(entry: Entry, rows: Sequence[Row]) -> tuple[Row | None, list[Row]]:
    """Return the newest test of a finding as it is now, and the newest with each other first seed."""
    own = [row for row in rows if row.finding == entry.name and row.digest == entry.digest]
    newest = {row.first_seed: row for row in own}
    first = newest.pop(min(newest)) if newest else None
    return first, list(newest.values())


def outcome_text(outcome: Outcome) -> str:
    of = f"{outcome.of}: " if outcome.of else ""
    return f"{of}{outcome.arm} {outcome.word}"


def notes_of(entries: Sequence[Entry], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return what would refute each finding, and what was found when a contradiction was looked into."""
    return [
        (entry.name, " ".join(filter(None, [f"It is refuted if {entry.refuted_by}", entry.found])))
        for entry in entries
    ]
