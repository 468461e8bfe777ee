"""The page of findings, made from the rows of the ledger: as Markdown, as HTML, and for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from minllm.page import html, markdown, units
from minllm.study.findings.outcomes import Decision, Outcome
from minllm.study.findings.rows import Row, outcomes_of

HEADING = "Findings put to the test"
HEAD = ("claim", "papers", "outcome", "difference", "interval", "pairs", "minutes", "here", "command")
SIDES = "lllrlrrll"
ABOUT = (
    "Each finding is a published claim, tested by the search that its file in conf/finding names, with a prediction"
    " that was fixed before the first run. It is replicated if every outcome is one that the claim predicts,"
    " contradicted if the claim excludes one of them, and undecided if the runs don't settle it. Differences are those"
    " of the arm from the baseline, and negative ones are better; of a ranking it is the rank correlation. Seven pairs"
    " hardly ever establish equivalence, for which the whole interval must lie within 0.5 % of the baseline."
    " Repetitions used seeds that weren't used before. If a finding's file was changed after a test, its section says"
    " what that test decided. A claim about large models may well fail in models that train in seconds, and this page"
    " is about those alone."
)
DEFAULT = "laptop"
"""The preset that isn't named."""
ARXIV = "https://arxiv.org/abs"
WIDTH = 120
NEVER, CHANGED = "not tested", "not tested since it changed"


@dataclass(frozen=True)
class Entry:
    """A finding as its file describes it.

    number: its place on the page; None for the end
    digest: of what decides it; rows with another one are of an earlier version of the file
    """

    name: str
    preset: str
    number: int | None
    claim: str
    papers: Sequence[str]
    refuted_by: str
    found: str
    digest: str

    @property
    def title(self) -> str:
        """Its name, with the preset unless it is the default."""
        return self.name if self.preset == DEFAULT else f"{self.name}-{self.preset}"

    @property
    def command(self) -> str:
        preset = "" if self.preset == DEFAULT else f" search.preset={self.preset}"
        return f"python sweep.py search=finding finding={self.name}{preset}"


def to_markdown(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    entries = in_order(entries)
    table = [
        [
            f"[{markdown.plain(claim)}](#{entry.title})" if claim else "",
            markdown_papers(entry) if claim else "",
            *map(markdown.plain, cells),
            f"`{commands_of(entry, rows)[0]}`" if claim else "",
        ]
        for entry in entries
        for claim, *cells in cells_of(entry, rows)
    ]
    about = textwrap.fill(markdown.plain(ABOUT), WIDTH)
    parts = [f"# {HEADING}", about, markdown.table(HEAD, table, SIDES), together(entries, rows)]
    for entry in entries:
        row, _ = tests_of(entry, rows)
        outcomes = [markdown.plain(sentence(outcome)) for outcome in outcomes_of(row)] if row else []
        parts += [
            f"## {entry.title}",
            f"{markdown.plain(entry.claim)} ({markdown_papers(entry)})",
            markdown.plain(f"It is refuted if {entry.refuted_by}"),
            *markdown.lines([f"- {outcome}" for outcome in outcomes]),
            markdown.plain(decided(entry, rows)),
            *([markdown.plain(entry.found)] if entry.found else []),
            markdown.sh("\n".join(commands_of(entry, rows))),
        ]
    return "\n\n".join(parts) + "\n"


def to_html(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    entries = in_order(entries)
    table = [
        [
            f'<a href="#{html.escape(entry.title)}">{html.escape(claim)}</a>' if claim else "",
            html_papers(entry) if claim else "",
            *map(html.escape, cells),
            f"<code>{html.escape(commands_of(entry, rows)[0])}</code>" if claim else "",
        ]
        for entry in entries
        for claim, *cells in cells_of(entry, rows)
    ]
    body = [f"<h1>{HEADING}</h1>", f"<p>{html.escape(ABOUT)}</p>", html.table(HEAD, table, SIDES)]
    body.append(f"<p>{html.escape(together(entries, rows))}</p>")
    for entry in entries:
        row, _ = tests_of(entry, rows)
        outcomes = [html.escape(sentence(outcome)) for outcome in outcomes_of(row)] if row else []
        body += [
            f'<h2 id="{(title := html.escape(entry.title))}">{title}</h2>',
            f"<p>{html.escape(entry.claim)} ({html_papers(entry)})</p>",
            f"<p>{html.escape(f'It is refuted if {entry.refuted_by}')}</p>",
            f"<ul>{''.join(f'<li>{outcome}</li>' for outcome in outcomes)}</ul>" if outcomes else "",
            f"<p>{html.escape(decided(entry, rows))}</p>",
            f"<p>{html.escape(entry.found)}</p>" if entry.found else "",
            f"<pre>{html.escape(chr(10).join(commands_of(entry, rows)))}</pre>",
        ]
    return html.document(HEADING, body, "body { max-width: 80rem; }", plots=False)


def in_a_terminal(entries: Sequence[Entry], rows: Sequence[Row]) -> list[str]:
    table = [
        [entry.title if claim else "", here, outcome, difference, pairs, minutes]
        for entry in in_order(entries)
        for claim, outcome, difference, _, pairs, minutes, here in cells_of(entry, rows)
    ]
    head = ("finding", "here", "outcome", "difference", "pairs", "minutes")
    return markdown.fit_to_width(head, table, "lllrrr", shutil.get_terminal_size((80, 24)).columns)


def markdown_papers(entry: Entry) -> str:
    return ", ".join(f"[{paper}]({ARXIV}/{paper})" for paper in entry.papers)


def html_papers(entry: Entry) -> str:
    return ", ".join(f'<a href="{ARXIV}/{paper}">{paper}</a>' for paper in entry.papers)


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.number is None, entry.number or 0))


def cells_of(entry: Entry, rows: Sequence[Row]) -> list[list[str]]:
    """Return the rows of a finding in the table: one for each outcome, of which the first has what is said once."""
    row, repeated = tests_of(entry, rows)
    if row is None:
        return [[entry.claim, *[units.NONE] * 5, untested(entry, rows)]]
    here = "; ".join(
        [row.decision, *(f"{other.decision} from seed {other.first_seed}" for other in repeated)]
    )
    cells = [
        [
            "",
            f"{outcome.of}: {outcome.word}" if outcome.of else outcome.word,
            units.signed(outcome.difference),
            units.between(outcome.interval or (None, None)),
            units.NONE if outcome.pairs is None else str(outcome.pairs),
            "",
            "",
        ]
        for outcome in outcomes_of(row)
    ]
    (_, *first, _, _), *others = cells
    return [[entry.claim, *first, f"{row.minutes:.1f}", here], *others]


def together(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    """Return how many findings were tested, in how long without repetitions, and what was decided, as a sentence."""
    tested = {entry.title: row for entry in entries if (row := tests_of(entry, rows)[0]) is not None}
    names = {row.finding for row in tested.values()}
    known = {entry.name for entry in entries}
    if not tested:
        return f"None of {len(known)} findings was tested."
    counts = Counter(row.decision for row in tested.values())
    said = ", ".join(f"{counts[decision]} {decision}" for decision in get_args(Decision) if counts[decision])
    minutes = sum(row.minutes for row in tested.values())
    return f"Tested: {len(names)} of {len(known)} findings, in {minutes:.0f} minutes: {said}."


def tests_of(entry: Entry, rows: Sequence[Row]) -> tuple[Row | None, list[Row]]:
    """Return the newest test of a finding as it is now, and the newest with each other first seed."""
    own = [row for row in rows if row.finding == entry.name and row.digest == entry.digest]
    newest = {row.first_seed: row for row in own}
    first = newest.pop(min(newest)) if newest else None
    return first, list(newest.values())


def earlier(entry: Entry, rows: Sequence[Row]) -> list[str]:
    """Return what tests of earlier versions of its file decided, the oldest first."""
    return [
        row.decision
        for row in rows
        if row.finding == entry.name and row.preset == entry.preset and row.digest != entry.digest
    ]


def commands_of(entry: Entry, rows: Sequence[Row]) -> list[str]:
    row, repeated = tests_of(entry, rows)
    return [row.command, *(other.command for other in repeated)] if row else [entry.command]


def untested(entry: Entry, rows: Sequence[Row]) -> str:
    return CHANGED if any(row.finding == entry.name for row in rows) else NEVER


def decided(entry: Entry, rows: Sequence[Row]) -> str:
    """Return what was decided, and what its repetitions decided, as sentences."""
    row, repeated = tests_of(entry, rows)
    if row is None:
        return f"{untested(entry, rows).capitalize()}."
    again = [f" With seeds from {other.first_seed}: {other.decision}." for other in repeated]
    if before := earlier(entry, rows):
        again.append(f" Before its file was changed: {', '.join(before)}.")
    return f"{row.decision.capitalize()} here, in {row.minutes:.1f} minutes.{''.join(again)}"


def sentence(outcome: Outcome) -> str:
    """Return an outcome with its numbers, and what was predicted."""
    of = f"{outcome.of.capitalize()}: " if outcome.of else ""
    baseline = f" against {outcome.baseline}" if outcome.baseline else ""
    numbers = ""
    if units.finite(outcome.difference) is not None:
        interval = units.between(outcome.interval or (None, None))
        between = f" (95 % interval: {interval})" if interval != units.NONE else ""
        pairs = f", {outcome.pairs} pairs" if outcome.pairs is not None else ""
        numbers = f", {units.signed(outcome.difference)} {outcome.unit}{between}{pairs}"
    return (
        f"{of}{outcome.arm}{baseline}: {outcome.word}{numbers}. Predicted: {' or '.join(outcome.predicted)}."
    )
