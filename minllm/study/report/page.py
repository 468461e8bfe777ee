"""The report of a comparison as one HTML page: the verdict first, the commands to reproduce it last."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from minllm.page import units
from minllm.page.html import document, escape, figure_html, table
from minllm.schema.overrides import format_value
from minllm.study.arms import config_differences, floor_of
from minllm.study.comparison import METRIC, Comparison
from minllm.study.facts import Fact
from minllm.study.grades import Grading
from minllm.study.reading import Reading
from minllm.study.report import grades, measures, scaling, scaling_figures, sentences
from minllm.study.report.commands import commands
from minllm.study.report.curves import curve
from minllm.study.report.figures import colour, intervals, learning_curves
from minllm.study.report.graded_texts import STYLE_GRADED
from minllm.study.report.looks import looks
from minllm.study.report.rows import cells, columns
from minllm.study.report.texts import STYLE_TEXTS, texts_html
from minllm.study.report.tuning import about_curves, curve_rows, efforts
from minllm.study.report.tuning_figure import tuning_figure

if TYPE_CHECKING:
    from minllm.grading.analysis import Analysis

STYLE = """
body { max-width: 72rem; }
h1 { font-size: clamp(1.5rem, 1rem + 2.4vw, 2.2rem); text-wrap: balance; }
h1, p, li { overflow-wrap: anywhere; }
p, ul, ol { max-width: 46rem; }
.verdicts { list-style: none; padding: 0; margin: 1.5rem 0; max-width: none;
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.25rem 2rem; }
.verdicts li { max-width: 46rem; padding-left: 1rem; border-left: 4px solid var(--word); }
.word { color: var(--word); font: 600 .82rem/1.4 system-ui, sans-serif; letter-spacing: .02em; }
.better { --word: #0072b2; } .equivalent { --word: #00795a; } .worse { --word: #b84f00; }
.inconclusive { --word: #666d78; }
@media (prefers-color-scheme: dark) {
  .better { --word: #5bb5ec; } .equivalent { --word: #2fc79b; } .worse { --word: #f28a3c; }
  .inconclusive { --word: #9aa1ab; }
  .figure .scatterlayer, .figure .legend .layers, .swatch { filter: brightness(1.35); }
}
.figure { background: none; margin: 1.5rem 0; padding: .5rem 0 0; border-width: 1px 0; border-radius: 0; }
.warning { border: 1px solid #d55e00; border-left-width: 6px; border-radius: 4px; padding: .5rem .75rem; }
.scroll table { font: 14px/1.4 system-ui, sans-serif; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll th { white-space: normal; overflow-wrap: anywhere; min-width: 4rem; }
.scroll td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 22rem; }
.scroll td:not(.n):not(:first-child) { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.scroll th, .scroll td { padding-right: 1.25rem; }
.scroll th.n { overflow-wrap: normal; }
.scroll th.n, .scroll td.n { padding: .3rem 0 .3rem .9rem; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--paper); }
.scroll td:last-child, .scroll th:last-child { padding-right: 0; }
.arm { padding-left: 1.2em; text-indent: -1.2em; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; font-size: 16px; }
  .scroll td:first-child, .scroll th:first-child { max-width: 8rem; }
}
"""

ABOUT_INTERVALS = (
    "Bars are intervals, diamonds are means, and dots are the differences of single seeds. Differences inside the"
    " shaded band are too small to matter."
)
ABOUT_CURVES = (
    "Lines are means over an arm’s seeds, and bands range from the lowest seed to the highest. Click a name to hide its"
    " arm."
)
ABOUT_FLOOR = "The floor is the text’s true entropy, which no model can go below."


def to_html(
    comparison: Comparison,
    readings: Sequence[Reading],
    grading: Grading | None = None,
    analysis: Analysis | None = None,
) -> str:
    """Return the text of report.html."""
    return document(
        comparison.headline,
        [
            *_verdict(comparison),
            *_scaling(comparison),
            *_noise(comparison),
            *_curves(comparison),
            *_measures(comparison),
            *_grades(grading),
            *_analysis(analysis),
            *_arms(comparison),
            *_tuning(comparison),
            *_differences(comparison),
            "<h2>Samples and held-out text</h2>",
            texts_html(readings),
            *_left_out(comparison),
            *_looks(comparison),
            "<h2>Methods</h2>",
            *(f"<p>{_typeset(paragraph)}</p>" for paragraph in sentences.judged(comparison)),
            *_commands(comparison),
            *_runs(comparison),
        ],
        STYLE + STYLE_TEXTS + STYLE_GRADED,
    )


def _verdict(comparison: Comparison) -> Iterator[str]:
    yield f"<h1>{escape(comparison.headline)}</h1>"
    yield from (f'<p class="warning">{_typeset(warning)}</p>' for warning in sentences.warnings(comparison))
    yield f'<p class="soft">{_typeset(sentences.introduction(comparison))}</p>'
    if comparison.contests:
        yield '<ul class="verdicts">'
        for contest in comparison.contests:
            word = contest.verdict.word
            yield f'<li class="{word}"><span class="word">{contest.outcome}</span><br>{_typeset(contest.sentence)}</li>'
        yield "</ul>"
        yield figure_html(intervals(comparison), "intervals")
        yield f'<p class="soft">{ABOUT_INTERVALS}</p>'
    yield from _facts("Held equal", [fact for fact in comparison.facts if fact.equal])
    yield from _facts("Not equal", [fact for fact in comparison.facts if not fact.equal])


def _facts(what: str, facts: Sequence[Fact]) -> Iterator[str]:
    items = [f'{escape(fact.what)} <span class="soft">{escape(fact.said)}</span>' for fact in facts]
    yield f"<p><b>{what}:</b> {'; '.join(items) or 'nothing that was checked'}.</p>"


def _scaling(comparison: Comparison) -> Iterator[str]:
    if not comparison.ladders:
        return
    yield f"<h2>{scaling.HEADING}</h2>"
    yield _list(scaling.sentences(comparison.ladders))
    for index, ladder in enumerate(comparison.ladders):
        yield figure_html(scaling_figures.against_size(ladder), f"scaling-{index}")
        yield figure_html(scaling_figures.against_costs(ladder), f"costs-{index}")
    yield f'<p class="soft">{_typeset(scaling.ABOUT)}</p>'
    for content in scaling.tables(comparison.ladders):
        yield f"<h3>{escape(content.title)}</h3>"
        yield from _tabulated(content)


def _noise(comparison: Comparison) -> Iterator[str]:
    if comparison.noise:
        yield "<h2>Noise floor</h2>"
        yield _list(sentences.noise(comparison))


def _curves(comparison: Comparison) -> Iterator[str]:
    curves = [curve(arm) for arm in comparison.arms]
    yield "<h2>Learning curves</h2>"
    if not any(curve.tokens for curve in curves):
        yield "<p>No run has evaluations to plot.</p>"
        return
    floor = floor_of(comparison.arms)
    figure, switches = learning_curves(curves, floor)
    yield figure_html(figure, "curves", switches)
    about = [ABOUT_CURVES, ABOUT_FLOOR if floor is not None else "", sentences.curves_of_bounds(comparison)]
    yield f'<p class="soft">{escape(" ".join(filter(None, about)))}</p>'


def _measures(comparison: Comparison) -> Iterator[str]:
    if not comparison.contests:
        return
    yield f"<h2>{measures.HEADING}</h2>"
    yield f'<p class="soft">{_typeset(measures.about(comparison))}</p>'
    for measure in measures.tables(comparison):
        yield f"<h3>{escape(measure.title)}</h3>"
        yield from _tabulated(measure)


def _tabulated(content: measures.Table) -> Iterator[str]:
    yield table(
        [*map(escape, content.head)], [[*map(_typeset, row)] for row in content.rows], "l" * len(content.head)
    )
    yield f'<p class="soft">{_typeset(content.about)}</p>'


def _grades(grading: Grading | None) -> Iterator[str]:
    if grading:
        yield f"<h2>{grades.HEADING}</h2>"
        yield from grades.grades_html(grading)


def _analysis(analysis: Analysis | None) -> Iterator[str]:
    if analysis:
        yield f"<h2>Analysis, in the words of {escape(analysis.judge)}</h2>"
        yield f'<p class="warning">{escape(analysis.note)}</p>'
        yield from (f"<blockquote>{escape(paragraph)}</blockquote>" for paragraph in analysis.paragraphs)


def _arms(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Arms</h2>"
    headings = [column.heading for column in columns(comparison)]
    yield table(
        ["arm", *map(_typeset, headings)],
        [
            [
                f'<div class="arm"><span class="swatch" style="background:{colour(i)}"></span>'
                f"{escape(sentences.arm_name(arm))}</div>",
                *map(escape, cells(arm, comparison)),
            ]
            for i, arm in enumerate(comparison.arms)
        ],
        "l" + "r" * len(headings),
    )
    yield f'<p class="soft">{_typeset(sentences.ABOUT_ARMS)}</p>'


def _tuning(comparison: Comparison) -> Iterator[str]:
    if not comparison.tuning:
        return
    yield "<h2>Tuning</h2>"
    yield f"<p>{escape(sentences.about_tuning(comparison))}</p>"
    yield _list(sentences.tuning(comparison))
    if curve_rows(comparison):
        yield figure_html(tuning_figure(comparison), "tuning")
        yield f'<p class="soft">{_typeset(about_curves(comparison))}</p>'
    yield from (f"<p>{_typeset(effort.sentence)}</p>" for effort in efforts(comparison))


def _differences(comparison: Comparison) -> Iterator[str]:
    differences = config_differences(comparison.arms)
    yield "<h2>Configuration differences</h2>"
    if not differences:
        yield f"<p>{escape(sentences.NO_DIFFERENCES)}</p>"
        return
    yield table(
        ["", *(escape(sentences.arm_name(arm)) for arm in comparison.arms)],
        [
            [f"<code>{escape(key)}</code>", *(escape(format_value(value)) for value in values)]
            for key, values in differences.items()
        ],
        "l" * (1 + len(comparison.arms)),
    )
    yield f'<p class="soft">{_typeset(sentences.ABOUT_DIFFERENCES)}</p>'


def _left_out(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Runs left out</h2>"
    rows = sentences.left_out(comparison)
    if not rows:
        yield f"<p>{escape(sentences.NONE_LEFT_OUT)}</p>"
        return
    items = "".join(f"<li><code>{escape(folder)}</code><br>{escape(why)}</li>" for folder, why in rows)
    yield f"<ul>{items}</ul>"


def _looks(comparison: Comparison) -> Iterator[str]:
    if tabulated := looks(comparison):
        yield f"<h2>{escape(tabulated.title)}</h2>"
        yield from _tabulated(tabulated)


def _commands(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Reproduction</h2>"
    lines = "\n\n".join(commands(comparison))
    yield f"<pre>{escape(lines)}</pre>"
    yield from (f'<p class="soft">{escape(sentence)}</p>' for sentence in sentences.repeating(comparison))


def _runs(comparison: Comparison) -> Iterator[str]:
    rows = [
        [
            escape(sentences.arm_name(arm)),
            str(seed),
            units.marked(units.bits(run.summary[METRIC]), arm.bound),
            escape(str(run.folder)),
        ]
        for arm in comparison.arms
        for seed, run in arm.runs.items()
    ]
    yield f"<details><summary>All {len(rows)} runs</summary>"
    yield table(["arm", "seed", "bits per byte", "folder"], rows, "llll")
    yield "</details>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_typeset(item)}</li>" for item in items) + "</ul>"


def _typeset(sentence: str) -> str:
    """Return a sentence with non-breaking spaces between numbers and units, and after articles."""
    return escape(re.sub(r" (?=[%=<])|(?<=[=<]) |(?<= a) |(?<= the) ", "\u00a0", sentence))
