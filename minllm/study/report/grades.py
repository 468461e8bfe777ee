"""The grades of a report: values with intervals, verdicts for each measure, samples, and the test of the judge."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence

from minllm.estimates import Estimate
from minllm.grading.grades import Duel, Measure, Values
from minllm.grading.intervals import estimate
from minllm.page import markdown
from minllm.page.html import escape, figure_html, table
from minllm.page.units import NONE
from minllm.study.grade_contests import format_of, title_of
from minllm.study.graded_samples import best_and_worst, rule
from minllm.study.grades import ArmGrades, Grading
from minllm.study.recall import Recall, Share, recall_by_distance
from minllm.study.report.grade_figures import recall_figure, value_bars
from minllm.study.report.graded_texts import LEGEND, shown_html, shown_markdown

HEADING = "Grades"
ABOUT_BARS = (
    "Bars are the values of the arms with 95 % intervals. A measure in brackets is described, not judged."
)
ABOUT_RECALL = (
    "The share of facts that were recalled where the story had to recall them, by the number of tokens since they were"
    " last mentioned. The 95 % intervals (Clopper–Pearson) take the recalls as independent."
)
ABOUT_DUELS = (
    "A judge read pairs of samples of the same beginnings without knowing which arm wrote them, in both orders. A tie"
    " counts as half. “Same winner” is the share of pairs that have the same winner in both orders; “first text” is the"
    " share of wins of the text that was shown first, which is 50 % without a position bias."
)


# ---- sentences that all formats share -----------------------------------------------------------


def introduction(grading: Grading) -> str:
    """Return what was graded and what the results are about."""
    shown = [arm.shown for arm in grading.arms if arm.shown]
    if not shown:
        return "No run has been graded."
    samples = shown[0].written.samples
    beginnings = len({sample.group for sample in samples if sample.beginning})
    stories = sum(not sample.beginning for sample in samples)
    what = [
        f"{stories} texts from nothing" * bool(stories),
        f"{len(samples) - stories} continuations of {beginnings} beginnings" * bool(beginnings),
    ]
    wrote = f"Each run wrote {' and '.join(filter(None, what))}."
    if len(grading.arms) == 1:
        return f"{wrote} Intervals are at 95 %, over texts and beginnings."
    seeds = sorted({seed for arm in grading.arms for seed in arm.runs})
    if grading.basis == "seeds":
        return (
            f"{wrote} {len(seeds)} seeds were graded; differences are paired over seeds and tested like those of the"
            " losses, with Holm's correction over all measures and contests."
        )
    which = f"seed {seeds[0]}" if len(seeds) == 1 else "its first seed"
    return (
        f"{wrote} One run of each arm was graded ({which}), and differences are paired over beginnings, with Holm's"
        " correction over all measures and contests. The results are about these trained models, not about the arms,"
        f" which would take at least {grading.seeds_needed} seeds for so many tests."
    )


def warnings(grading: Grading) -> list[str]:
    """Return why something isn't graded."""
    return [f"{arm.arm}: {arm.why_not}" for arm in grading.arms if arm.why_not]


def notes(grading: Grading) -> list[str]:
    """Return the grader's notes on each arm."""
    lines: list[str] = []
    for arm in grading.arms:
        of_arm = dict.fromkeys(note for grades in arm.runs.values() for note in grades.notes)
        lines += [f"{arm.arm}: {note}" if len(grading.arms) > 1 else note for note in of_arm]
    return lines


def value_text(measure: Measure, known: Estimate | None) -> str:
    """Return a value with its interval: 62.0 % (54.9 to 68.7)."""
    if known is None:
        return NONE
    value = format_of(measure).value
    low, high = known.interval
    if not math.isfinite(high - low):
        return value(known.value)
    return f"{value(known.value)} ({value(low).removesuffix(' %')} to {value(high)})"


def head_and_rows(grading: Grading) -> tuple[list[str], list[list[str]]]:
    """Return the table of values: a row for each measure, a column for each arm."""
    arms = [arm for arm in grading.arms if arm.runs]
    rows = [
        [title_of(measure), *(value_text(measure, arm.values.get(measure.name)) for arm in arms)]
        for measure in grading.measures
    ]
    return ["measure", *(arm.arm for arm in arms)], rows


WON = Measure("won", "won", "share", "higher", 1.0)
DUEL_HEAD = ("arm", "against", "won", "ties", "same winner", "first text")


def duel_rows(grading: Grading) -> list[list[str]]:
    return [
        [
            *duel.names,
            value_text(WON, won(duel)),
            *(
                NONE if value is None else f"{100 * value:.0f} %"
                for value in (duel.ties, duel.agreement, duel.first)
            ),
        ]
        for duel in grading.duels
    ]


def won(duel: Duel) -> Estimate | None:
    """Return the share of pairs that the first arm won, with its interval over beginnings."""
    counts = [0.0 if share is None else 1.0 for share in duel.wins]
    return estimate(WON, Values([share or 0.0 for share in duel.wins], counts), duel.groups)


def cell(value: str | float | None) -> str:
    """Return a cell of a judge's test."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else f"{value:.3g}"


def any_breaks(arms: Sequence[ArmGrades]) -> bool:
    return any(sample.break_ for arm in arms for sample in best_and_worst(arm.shown))


def recall_rows(recall: Recall) -> tuple[list[str], list[list[str]]]:
    """Return the table of recall by distance: a row for each kind of fact and distance that an arm has."""
    head = ["facts", "tokens", *recall.arms]
    rows = [
        [kind, label, *(recall_text(recall.of(kind, arm, place)) for arm in recall.arms)]
        for kind in recall.kinds
        for place, label in enumerate(recall.labels)
    ]
    return head, rows


def recall_text(known: Share | None) -> str:
    if known is None or not known.of:
        return NONE
    return f"{100 * known.share:.0f} % ({100 * known.low:.0f} to {100 * known.high:.0f}; n = {known.of})"


# ---- HTML ----------------------------------------------------------------------------------------


def grades_html(grading: Grading) -> Iterator[str]:
    """Yield the section of a page that has STYLE_GRADED."""
    yield f"<p>{escape(introduction(grading))}</p>"
    yield from (f'<p class="warning">{escape(sentence)}</p>' for sentence in warnings(grading))
    yield from (f"<p>{escape(note)}</p>" for note in notes(grading))
    if grading.calibration:
        yield from _calibration_html(grading)
    head, rows = head_and_rows(grading)
    if len(head) > 1 and rows:
        if len(head) > 2:
            yield figure_html(value_bars(grading), "grades")
            yield f'<p class="soft">{escape(ABOUT_BARS)}</p>'
        yield table([*map(escape, head)], [[*map(escape, row)] for row in rows], "l" + "r" * (len(head) - 1))
    if grading.contests:
        yield '<ul class="verdicts">'
        for contest in grading.contests:
            word = contest.word
            yield f'<li class="{word}"><span class="word">{word}</span><br>{escape(contest.sentence)}</li>'
        yield "</ul>"
    if recall := recall_by_distance(grading):
        yield "<h3>Recall by distance</h3>"
        yield figure_html(*recall_figure(recall))
        yield f'<p class="soft">{escape(ABOUT_RECALL)}</p>'
    if grading.duels:
        yield "<h3>Pairs</h3>"
        yield table(DUEL_HEAD, [[*map(escape, row)] for row in duel_rows(grading)], "llrrrr")
        yield f'<p class="soft">{escape(ABOUT_DUELS)}</p>'
        yield from (f"<p>{escape(note)}</p>" for duel in grading.duels for note in duel.notes)
    yield from _samples_html(grading)


def _calibration_html(grading: Grading) -> Iterator[str]:
    known = grading.calibration
    yield f"<h3>Can the judge be believed? {'Yes' if known.is_passed else 'No'}</h3>"
    yield from (f"<p>{escape(sentence)}</p>" for sentence in known.sentences)
    sides = "l" + "r" * (len(known.columns) - 1)
    yield table(
        [*map(escape, known.columns)], [[escape(cell(each)) for each in row] for row in known.rows], sides
    )


def _samples_html(grading: Grading) -> Iterator[str]:
    arms = [arm for arm in grading.arms if arm.shown]
    if not arms:
        return
    yield "<h3>Best and worst samples</h3>"
    yield f'<p class="soft">{escape(rule(arms[0].shown))} {LEGEND if any_breaks(arms) else ""}</p>'
    yield '<div class="samples">'
    for arm in arms:
        for sample in best_and_worst(arm.shown):
            yield shown_html(arm.arm, sample, grading.measures)
    yield "</div>"


# ---- Markdown and the terminal -------------------------------------------------------------------


def grades_markdown(grading: Grading) -> list[str]:
    """Return the parts of the section, without its heading."""
    plain = markdown.plain
    parts = [plain(introduction(grading)), *(f"**{plain(sentence)}**" for sentence in warnings(grading))]
    parts += map(plain, notes(grading))
    if known := grading.calibration:
        parts += [f"### Can the judge be believed? {'Yes' if known.is_passed else 'No'}"]
        parts += [*map(plain, known.sentences)]
        rows = [[plain(cell(each)) for each in row] for row in known.rows]
        parts.append(markdown.table([*map(plain, known.columns)], rows, "l" + "r" * (len(known.columns) - 1)))
    head, rows = head_and_rows(grading)
    if len(head) > 1 and rows:
        names = ["measure", *(markdown.code(name) for name in head[1:])]
        cells = [[*map(plain, row)] for row in rows]
        parts.append(markdown.table(names, cells, "l" + "r" * (len(head) - 1)))
    parts += markdown.lines([f"- {plain(contest.sentence)}" for contest in grading.contests])
    if recall := recall_by_distance(grading):
        parts += ["### Recall by distance", plain(ABOUT_RECALL), _recall_markdown(recall)]
    if grading.duels:
        cells = [[markdown.code(row[0]), markdown.code(row[1]), *row[2:]] for row in duel_rows(grading)]
        parts += ["### Pairs", markdown.table(DUEL_HEAD, cells, "llrrrr"), plain(ABOUT_DUELS)]
        parts += [plain(note) for duel in grading.duels for note in duel.notes]
    arms = [arm for arm in grading.arms if arm.shown]
    if arms:
        parts += ["### Best and worst samples", plain(rule(arms[0].shown))]
        parts += [
            part
            for arm in arms
            for sample in best_and_worst(arm.shown)
            for part in shown_markdown(arm.arm, sample, grading.measures)
        ]
    return parts


def _recall_markdown(recall: Recall) -> str:
    head, rows = recall_rows(recall)
    names = [*head[:2], *map(markdown.code, head[2:])]
    return markdown.table(names, [[*map(markdown.plain, row)] for row in rows], "ll" + "r" * len(recall.arms))


def in_a_terminal(grading: Grading) -> list[str]:
    """Return the lines of a summary: values, verdicts, notes."""
    head, rows = head_and_rows(grading)
    lines = [introduction(grading)]
    if grading.calibration:
        lines += grading.calibration.sentences
    if len(head) > 1 and rows:
        lines += ["", *_fitted(head, rows), ""]
    lines += [f"- {contest.sentence}" for contest in grading.contests]
    lines += [
        f"- {arm} won {won} of the pairs against {other}." for arm, other, won, *_ in duel_rows(grading)
    ]
    return [*lines, *warnings(grading), *notes(grading)]


def _fitted(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return tables for a terminal. If the arms leave no room for their values, they are numbered, two to a table."""
    width = shutil.get_terminal_size((markdown.TERMINAL, 24)).columns
    arms = head[1:]
    if markdown.widest(head, rows) <= width or len(arms) == 1:
        return markdown.fit_to_width(head, rows, "l" + "r" * len(arms), width)
    lines = [f"arm {number}: {arm}" for number, arm in enumerate(arms, 1)]
    for first in range(1, len(head), 2):
        numbers = [f"arm {number}" for number in range(first, min(first + 2, len(head)))]
        values = [[row[0], *row[first : first + 2]] for row in rows]
        lines += ["", *markdown.fit_to_width([head[0], *numbers], values, "l" + "r" * len(numbers), width)]
    return lines
