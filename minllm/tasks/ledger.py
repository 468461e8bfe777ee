"""`python run.py task=ledger`: every verdict that was started here, on its own and among all ideas."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.errors import UserError, printable
from minllm.files.atomic import write_text
from minllm.page import html, markdown, units
from minllm.page.terminal import answer
from minllm.schema.options import Name, reads
from minllm.study.metric import BITS
from minllm.verdict.discoveries import level
from minllm.verdict.ledger import Contents, Ledger, Line

HEAD = (
    "date",
    "question",
    "outcome",
    "among all",
    "difference",
    "interval",
    "pairs",
    "p",
    "needs p ≤",
    "report",
)
SIDES = "llllrlrrrl"
EMPTY = (
    "The ledger is empty: no verdict has been started in this folder yet. Start one, such as: python sweep.py"
    " search=verdict 'arms.b=[norm=sandwich]'"
)
ABOUT = (
    "A row is one arm against its baseline, as of the last look. Differences are in bits per byte, or of"
    " 1 − accuracy where the question names an accuracy; negative is better."
    " An idea holds among all if its p-value is at most the level that was fixed before its first run; every level"
    " depends on how many ideas were started and discovered before it (LORD++), so that at most 5 % of all ideas that"
    " hold are expected to be false."
)


@dataclass(frozen=True)
class Row:
    """One arm against its baseline in the ledger; `among_all` is yes, not yet, no, crowned, or a dash."""

    id: str
    time: str
    name: str
    arm: str
    baseline: str
    metric: str
    outcome: str
    among_all: str
    difference: float | None
    interval: Sequence[float | None] | None
    pairs: int | None
    p: float | None
    number: int | None
    level: float | None
    report: str | None

    @property
    def question(self) -> str:
        return f"{self.arm} against {self.against}"

    @property
    def against(self) -> str:
        """The baseline, and what decides unless it is bits per byte."""
        return self.baseline if self.metric == BITS.name else f"{self.baseline} by {self.metric}"


@reads()
def ledger(cfg: DictConfig, run_dir: Path, *, date: Name | None, name: Name | None) -> list[Row]:
    """Print the ledger as a table, and write ledger.html and ledger.md.

    Args:
        run_dir: where the pages are written.
        date: only verdicts started or reached on this day (UTC): 2026-11-25.
        name: only verdicts in whose name or question this occurs.

    Raises:
        UserError: no verdict matches.
        OSError: the pages can't be written.
    """
    contents = Ledger().read()
    rows = [row for row in rows_of(contents) if is_selected(row, date, name)]
    for sentence in contents.damaged:
        print(f"WARNING: {printable(sentence)}")
    if contents.lines and not rows:
        raise UserError("No verdict in the ledger matches. Leave out date= and name= to see all of them.")
    if rows:
        show(contents, rows, run_dir)
    elif not contents.damaged:
        print(EMPTY)
    answer(in_a_line(contents, rows))
    return rows


def show(contents: Contents, rows: Sequence[Row], run_dir: Path) -> None:
    """Print the table, and write the pages."""
    print(printable("\n".join(in_a_terminal(rows))))
    print(printable(summary(contents)))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "ledger.html", to_html(contents, rows))
    write_text(run_dir / "ledger.md", to_markdown(contents, rows))
    print(f"The pages are {run_dir / 'ledger.html'} and {run_dir / 'ledger.md'}")


def rows_of(contents: Contents) -> Iterator[Row]:
    """Yield the rows of each verdict as of its last line, in the order in which the verdicts were started."""
    for started in contents.of("started"):
        reached = contents.of("reached", started["id"])
        if reached:
            yield from rows_of_verdict(started, reached[-1], [line.get("crowned") for line in reached])
        else:
            common = {**common_to(started, started), "report": None}
            missing = dict.fromkeys(("difference", "interval", "pairs", "p"))
            for place in started["places"] or untested(started):
                known = {key: place.get(key) for key in ("arm", "baseline", "number", "level")}
                yield Row(**common, **missing, **known, outcome="not reached", among_all=units.NONE)


def common_to(started: Line, line: Line) -> dict[str, Any]:
    """Return what the rows of a verdict have in common. Verdicts of versions without a metric are by bits per byte."""
    metric = started["question"].get("metric", BITS.name)
    return {"id": line["id"], "time": line["time"], "name": started["name"], "metric": str(metric)}


def untested(started: Line) -> list[dict[str, str]]:
    """Return the arms and baselines of a verdict whose ideas have no numbers, as far as its question contains them."""
    arms = started["question"].get("arms") or {}
    first, *others = [" ".join(overrides) or arm for arm, overrides in arms.items()] or [started["name"]]
    return [{"arm": arm, "baseline": first} for arm in others] or [{"arm": first, "baseline": "itself"}]


def rows_of_verdict(
    started: Line, line: Line, crownings: Sequence[Mapping[str, Any] | None]
) -> Iterator[Row]:
    common = {**common_to(started, line), "report": line.get("report")}
    crowned = [crowning["arm"] for crowning in crownings if crowning]
    for outcome in line["outcomes"]:
        known = {
            key: outcome.get(key)
            for key in (
                "arm",
                "baseline",
                "difference",
                "interval",
                "pairs",
                "p",
                "number",
                "level",
                "outcome",
            )
        }
        yield Row(**common, **known, among_all=among_all(outcome, crowned))
    for outcome in line["noise"]:
        yield Row(
            **common,
            **dict.fromkeys(("difference", "interval", "p", "number", "level")),
            arm=outcome.get("arm") or "the only arm",
            baseline="itself",
            outcome=outcome.get("outcome", units.NONE),
            among_all=units.NONE,
            pairs=outcome.get("pairs"),
        )


def among_all(outcome: Mapping[str, Any], crowned: Sequence[str]) -> str:
    if outcome["number"] is None:
        return units.NONE
    if outcome["holds"]:
        return "yes, crowned" if outcome["arm"] in crowned else "yes"
    return "not yet" if outcome["open"] else "no"


def is_selected(row: Row, date: str | None, name: str | None) -> bool:
    texts = (row.name, row.arm, row.baseline)
    return (date is None or row.time.startswith(date)) and (
        name is None or any(name in text for text in texts)
    )


def summary(contents: Contents) -> str:
    """Return how many ideas were tried, and what the next one needs."""
    ideas, discoveries = contents.ideas, contents.discoveries()
    tried = f"{ideas} idea{'s' * (ideas != 1)} tried, {len(discoveries)} hold among all"
    return f"{tried}; the next one needs p ≤ {level(ideas + 1, discoveries):.2g}."


def in_a_line(contents: Contents, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "status": "read",
        "ideas": contents.ideas,
        "discoveries": len(contents.discoveries()),
        "next_level": level(contents.ideas + 1, contents.discoveries()),
        "verdicts": [asdict(row) for row in rows],
        "damaged": list(contents.damaged),
    }


def in_a_terminal(rows: Sequence[Row]) -> list[str]:
    """Return the table with the arm, which can be shortened, first, and the columns that can be left out last."""
    head = ("arm", *HEAD[2:5], "pairs", "against", "date", *HEAD[7:])
    table = []
    for row in rows:
        date, _, outcome, among, difference, _, pairs, p, needs, report = cells(row)
        table.append([row.arm, outcome, among, difference, pairs, row.against, date, p, needs, report])
    printed = [[markdown.one_line(cell) for cell in line] for line in table]
    return markdown.fit_to_width(head, printed, "lllrrllrrl", shutil.get_terminal_size((80, 24)).columns)


def to_markdown(contents: Contents, rows: Sequence[Row]) -> str:
    table = [[markdown.word(cell) for cell in cells(row)] for row in rows]
    parts = ["# Ledger of verdicts", markdown.plain(summary(contents)), markdown.table(HEAD, table, SIDES)]
    damaged = markdown.lines([f"- {markdown.plain(sentence)}" for sentence in contents.damaged])
    return "\n\n".join([*parts, markdown.plain(ABOUT), *damaged]) + "\n"


def to_html(contents: Contents, rows: Sequence[Row]) -> str:
    body = [
        "<h1>Ledger of verdicts</h1>",
        f"<p>{html.escape(summary(contents))}</p>",
        *(f"<p><b>{html.escape(sentence)}</b></p>" for sentence in contents.damaged),
        html.table(HEAD, [[html.escape(cell) for cell in cells(row)] for row in rows], SIDES),
        f'<p class="soft">{html.escape(ABOUT)}</p>',
    ]
    return html.document("Ledger of verdicts", body)


def cells(row: Row) -> list[str]:
    ends = row.interval or (None, None)
    return [
        row.time[:10],
        row.question,
        row.outcome,
        row.among_all,
        units.signed(row.difference),
        units.between(ends),
        units.NONE if row.pairs is None else str(row.pairs),
        units.NONE if row.p is None else f"{row.p:.2g}",
        units.NONE if row.level is None else f"{row.level:.2g}",
        row.report or units.NONE,
    ]
