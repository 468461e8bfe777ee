"""The grades of a single run as an HTML page, as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minllm.page.html import document, escape
from minllm.page.markdown import plain
from minllm.runs.folder import write_text
from minllm.study.graded_samples import best_and_worst, rule
from minllm.study.grades import Grading
from minllm.study.report import encodable
from minllm.study.report.data import json_text
from minllm.study.report.data import plain as plain_values
from minllm.study.report.graded_texts import STYLE_GRADED, expected, grades_of
from minllm.study.report.grades import grades_html, grades_markdown, in_a_terminal
from minllm.study.report.grades_data import grades_data
from minllm.study.report.page import STYLE
from minllm.study.report.texts import STYLE_TEXTS

FORMAT = 1
"""The version of grades.json and of the line that --json prints; docs/report.schema.json describes both."""


def write_grades(grading: Grading, run: Path, folder: Path) -> list[Path]:
    """Write grades.html, grades.md and grades.json to a folder, and return their paths.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Grades of {run.name}"
    page = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(str(run))}</p>', *grades_html(grading)]
    content = {"format": FORMAT, "run": str(run), **grades_data(grading)}
    texts = {
        "grades.html": document(title, page, STYLE + STYLE_TEXTS + STYLE_GRADED),
        "grades.md": "\n\n".join([f"# {plain(title)}", plain(str(run)), *grades_markdown(grading)]) + "\n",
        "grades.json": json_text(content),
    }
    for name, content_of in texts.items():
        write_text(folder / name, encodable(content_of))
    return [folder / name for name in texts]


def lines(grading: Grading) -> list[str]:
    """Return what is printed: the grades, and the best and the worst sample."""
    printed = in_a_terminal(grading)
    for arm in grading.arms:
        if arm.shown is None:
            continue
        printed += ["", rule(arm.shown)]
        for sample in best_and_worst(arm.shown):
            about = grades_of(sample, grading.measures)
            printed += [
                "",
                f"--- {sample.which} sample, number {sample.index + 1}: {about}",
                sample.beginning + sample.text,
            ]
            if sample.break_:
                printed.append(
                    f"--- It breaks after {sample.break_.offset:,} characters; {expected(sample.break_)}."
                )
    return printed


def in_a_line(grading: Grading, run: Path, report: Path) -> dict[str, Any]:
    """Return the values as --json prints them; `report` is the path of grades.json."""
    (arm,) = grading.arms
    return plain_values(
        {
            "format": FORMAT,
            "status": "graded",
            "run": run,
            "values": {
                name: {"value": known.value, "interval": known.interval} for name, known in arm.values.items()
            },
            "report": report,
        }
    )
