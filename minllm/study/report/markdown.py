"""The report of a comparison as Markdown, for a paper's appendix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minllm.page import units
from minllm.page.markdown import code, lines, plain, sh, table
from minllm.schema.overrides import format_value
from minllm.study.arms import config_differences
from minllm.study.comparison import METRIC, Comparison, Contest
from minllm.study.grades import Grading
from minllm.study.reading import Reading
from minllm.study.report import grades, measures, scaling, sentences
from minllm.study.report.commands import commands
from minllm.study.report.curves import at_quarters, curve
from minllm.study.report.looks import looks
from minllm.study.report.rows import cells, columns
from minllm.study.report.texts import texts_markdown
from minllm.study.report.tuning import about_curves, curve_rows, efforts

if TYPE_CHECKING:
    from minllm.grading.analysis import Analysis


def to_markdown(
    comparison: Comparison,
    readings: Sequence[Reading],
    grading: Grading | None = None,
    analysis: Analysis | None = None,
) -> str:
    """Return the text of report.md."""
    sections = [
        [
            f"# {plain(comparison.headline)}",
            *(f"**{plain(sentence)}**" for sentence in sentences.warnings(comparison)),
            plain(sentences.introduction(comparison)),
            *_verdict(comparison),
        ],
        [f"{plain(sentences.equal(comparison))}", plain(sentences.unequal(comparison))],
        _scaling(comparison),
        _listed("## Noise floor", sentences.noise(comparison)),
        ["## Learning curves", *_curves(comparison)],
        _measures(comparison),
        [f"## {grades.HEADING}", *grades.grades_markdown(grading)] if grading else [],
        _analysis(analysis) if analysis else [],
        ["## Arms", *_arms(comparison)],
        _tuning(comparison),
        ["## Configuration differences", *_differences(comparison)],
        ["## Samples and held-out text", texts_markdown(readings)],
        ["## Runs left out", *_left_out(comparison)],
        _looks(comparison),
        ["## Methods", *map(plain, sentences.judged(comparison))],
        ["## Reproduction", *_commands(comparison)],
        ["## All runs", _runs(comparison)],
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _verdict(comparison: Comparison) -> list[str]:
    rows = [
        [
            code(contest.arm.name),
            code(contest.baseline.name),
            contest.explained_outcome,
            units.signed(contest.verdict.difference),
            units.between(contest.verdict.interval),
            f"{contest.verdict.margin:.4f}",
            str(contest.verdict.pairs),
            units.p_value(contest.verdict.p_difference),
            units.p_value(contest.verdict.p_equivalence),
        ]
        for contest in comparison.contests
    ]
    if not rows:
        return []
    head = [
        "arm",
        "against",
        "verdict",
        "difference",
        f"{_confidence(comparison)} interval",
        "margin",
        "pairs",
        "p (difference)",
    ]
    return [
        *lines([f"- {plain(contest.sentence)}" for contest in comparison.contests]),
        table([*head, "p (equivalence)"], rows, "lllrrrrrr"),
        "Difference for each seed:",
        *lines(
            [
                f"- {code(contest.arm.name)} against {code(contest.baseline.name)}: {_of_seeds(contest)}"
                for contest in comparison.contests
            ]
        ),
    ]


def _of_seeds(contest: Contest) -> str:
    known = [f"seed {seed} {units.signed(value)}" for seed, value in contest.differences.items()]
    return ", ".join(known) or "none is known"


def _confidence(comparison: Comparison) -> str:
    return " or ".join(
        dict.fromkeys(f"{100 * contest.verdict.confidence:.4g} %" for contest in comparison.contests)
    )


def _scaling(comparison: Comparison) -> list[str]:
    if not comparison.ladders:
        return []
    parts = [f"## {scaling.HEADING}", *_listed("", scaling.sentences(comparison.ladders))[1:]]
    for content in scaling.tables(comparison.ladders):
        parts += [f"### {content.title}", *_tabulated(content)]
    return [*parts, plain(scaling.ABOUT)]


def _curves(comparison: Comparison) -> list[str]:
    rows = [
        [
            code(sentences.arm_name(arm)),
            *(units.marked(units.bits(value), arm.bound) for value in at_quarters(curve(arm))),
        ]
        for arm in comparison.arms
    ]
    head = ["arm", "25 %", "50 %", "75 %", "end"]
    return ["Bits per byte (mean over seeds) at each quarter of training:", table(head, rows, "lrrrr")]


def _measures(comparison: Comparison) -> list[str]:
    if not comparison.contests:
        return []
    parts = [f"## {measures.HEADING}", plain(measures.about(comparison))]
    for measure in measures.tables(comparison):
        parts += [f"### {measure.title}", *_tabulated(measure)]
    return parts


def _tabulated(content: measures.Table) -> list[str]:
    rows = [[code(arm), code(baseline), *map(plain, cells)] for arm, baseline, *cells in content.rows]
    return [table(content.head, rows, "l" * len(content.head)), plain(content.about)]


def _analysis(analysis: Analysis) -> list[str]:
    title = f"## Analysis, in the words of {plain(analysis.judge)}"
    return [
        title,
        f"**{plain(analysis.note)}**",
        *(f"> {plain(paragraph)}" for paragraph in analysis.paragraphs),
    ]


def _arms(comparison: Comparison) -> list[str]:
    rows = [[code(sentences.arm_name(arm)), *cells(arm, comparison)] for arm in comparison.arms]
    head = ["arm", *(column.heading for column in columns(comparison))]
    return [table(head, rows, "l" + "r" * (len(head) - 1)), plain(sentences.ABOUT_ARMS)]


def _tuning(comparison: Comparison) -> list[str]:
    if not comparison.tuning:
        return []
    parts = ["## Tuning", *_listed(plain(sentences.about_tuning(comparison)), sentences.tuning(comparison))]
    if rows := curve_rows(comparison):
        head = ["trials", *map(code, comparison.tuning)]
        parts += [plain(about_curves(comparison)), table(head, rows, "r" * len(head))]
    return [*parts, *(plain(effort.sentence) for effort in efforts(comparison))]


def _differences(comparison: Comparison) -> list[str]:
    rows = [
        [code(key), *(code(format_value(value)) for value in values)]
        for key, values in config_differences(comparison.arms).items()
    ]
    if not rows:
        return [plain(sentences.NO_DIFFERENCES)]
    head = ["", *(code(sentences.arm_name(arm)) for arm in comparison.arms)]
    return [table(head, rows, "l" * len(rows[0])), plain(sentences.ABOUT_DIFFERENCES)]


def _left_out(comparison: Comparison) -> list[str]:
    runs = sentences.left_out(comparison)
    listed = lines([f"- {code(folder)}: {plain(why)}" for folder, why in runs])
    return listed or [plain(sentences.NONE_LEFT_OUT)]


def _looks(comparison: Comparison) -> list[str]:
    tabulated = looks(comparison)
    return [f"## {tabulated.title}", *_tabulated(tabulated)] if tabulated else []


def _commands(comparison: Comparison) -> list[str]:
    return [sh("\n".join(commands(comparison))), *map(plain, sentences.repeating(comparison))]


def _runs(comparison: Comparison) -> str:
    rows = [
        [
            code(sentences.arm_name(arm)),
            str(seed),
            units.marked(units.bits(run.summary[METRIC]), arm.bound),
            code(str(run.folder)),
        ]
        for arm in comparison.arms
        for seed, run in arm.runs.items()
    ]
    return table(["arm", "seed", "bits per byte", "folder"], rows, "lrrl")


def _listed(heading: str, items: Sequence[str]) -> list[str]:
    return [heading, *lines([f"- {plain(item)}" for item in items])] if items else []
