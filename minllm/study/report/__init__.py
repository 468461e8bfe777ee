"""The report of a comparison as an HTML page, as Markdown for a paper, and as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minllm.errors import printable
from minllm.page.markdown import fit_to_width, one_line
from minllm.page.terminal import answer
from minllm.runs.folder import write_text
from minllm.study import bounds
from minllm.study.comparison import Comparison
from minllm.study.grades import Grading
from minllm.study.metric import BITS
from minllm.study.reading import Reading
from minllm.study.report import grades, scaling, sentences
from minllm.study.report.data import failure, in_a_line, to_json
from minllm.study.report.markdown import to_markdown
from minllm.study.report.measures import in_a_terminal
from minllm.study.report.page import to_html
from minllm.study.report.rows import cells, columns
from minllm.study.report.tuning import efforts
from minllm.study.wandb_report import publish_if_mirrored

if TYPE_CHECKING:
    from minllm.grading.analysis import Analysis

IN_A_TERMINAL = ("seeds", "val_bpb", "val_bpb_sd", "val_accuracy", "params", "tokens_per_second")


def write_and_print(
    comparison: Comparison,
    folder: Path,
    readings: Sequence[Reading],
    ledger: Mapping[str, Any] | None = None,
    grading: Grading | None = None,
    analysis: Analysis | None = None,
) -> None:
    """Write the report to a folder, and to Weights & Biases if the runs are there, and print a summary.

    Args:
        ledger: of a verdict, what the report says about its entry in the ledger.
        grading: the grades of the arms, if they were graded.
        analysis: what a judge says about the report, if it was asked.
    """
    written = write_report(comparison, folder, readings, ledger, grading, analysis)
    print(summary(comparison, grading))
    if analysis:
        print(printable("\n\n".join(["", analysis.note, *analysis.paragraphs, ""])))
    print(f"The report is {' and '.join(map(str, written))}", flush=True)
    if ledger:
        print(printable(ledger["sentence"]), flush=True)
    answer(in_a_line(comparison, folder / "report.json", ledger, grading))
    if mirrored := publish_if_mirrored(comparison, (folder / "report.md").read_text(encoding="utf-8")):
        print(mirrored)


def print_without_report(comparison: Comparison, ledger: Mapping[str, Any]) -> None:
    """Print a comparison in which no arm has a run, of which there is nothing to report."""
    results = [*comparison.contests, *comparison.noise]
    print(printable(f"{comparison.headline} {results[0].verdict.why}"), flush=True)
    answer(in_a_line(comparison, None, ledger))


def print_failure(sentence: str) -> None:
    """Print why there is nothing to report yet."""
    print(printable(sentence), flush=True)
    answer(failure(sentence))


def write_report(
    comparison: Comparison,
    folder: Path,
    readings: Sequence[Reading],
    ledger: Mapping[str, Any] | None = None,
    grading: Grading | None = None,
    analysis: Analysis | None = None,
) -> list[Path]:
    """Write report.html, report.md and report.json to a folder, and return their paths.

    Args:
        readings: samples and per-token losses of one run of each arm; see `minllm.study.reading.read_arms`.
        ledger: of a verdict, what the report says about its entry in the ledger.
        grading: the grades of the arms, if they were graded.
        analysis: what a judge says about the report, if it was asked.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.html": to_html(comparison, readings, grading, analysis),
        "report.md": to_markdown(comparison, readings, grading, analysis),
        "report.json": to_json(comparison, readings, ledger, grading, analysis),
    }
    for name, text in texts.items():
        write_text(folder / name, encodable(text))
    return [folder / name for name in texts]


def summary(comparison: Comparison, grading: Grading | None = None) -> str:
    """Return the summary for a terminal: the verdicts, the metrics behind them, grades, and warnings."""
    lines = [*_summary(comparison), *(["", *grades.in_a_terminal(grading)] if grading else [])]
    return encodable(printable("\n".join(lines)))


def encodable(text: str) -> str:
    """Return text that can be encoded as UTF-8, because a folder's name may contain invalid bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _summary(comparison: Comparison) -> Iterator[str]:
    yield comparison.headline
    yield from (f"WARNING: {sentence}" for sentence in sentences.warnings(comparison))
    yield ""
    for contest, measures in zip(comparison.contests, comparison.measures):
        yield f"- {contest.sentence}"
        yield from [f"  In {BITS.unit}:"] * comparison.metric.is_share
        yield from (f"  {sentence}" for sentence in in_a_terminal(measures))
    yield from (f"- {sentence}" for sentence in sentences.noise(comparison))
    yield from (f"- {sentence}" for sentence in scaling.sentences(comparison.ladders))
    yield ""
    yield from _table(comparison)
    yield " ".join(filter(None, [sentences.ABOUT_SD, bounds.about(comparison.arms)]))
    yield ""
    yield sentences.unequal(comparison)
    yield from (f"Tuning of {sentence}" for sentence in sentences.tuning(comparison))
    yield from (effort.sentence for effort in efforts(comparison))
    yield from (f"Left out: {folder}: {why}" for folder, why in sentences.left_out(comparison))


def _table(comparison: Comparison) -> list[str]:
    wanted = {i: column for i, column in enumerate(columns(comparison)) if column.key in IN_A_TERMINAL}
    head = ["arm", *(column.heading for column in wanted.values())]
    rows = []
    for arm in comparison.arms:
        shown = cells(arm, comparison)
        rows.append([one_line(sentences.arm_name(arm)), *(shown[i] for i in wanted)])
    return fit_to_width(head, rows, "l" + "r" * len(wanted), shutil.get_terminal_size((80, 24)).columns)
