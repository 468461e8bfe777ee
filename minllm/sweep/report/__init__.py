"""The report of a search, in its folder: summary.md, and report.html with plots.

Writing it only reads the study, so it can be written while the search is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna

from minllm.runs.folder import write_text
from minllm.sweep.report.page import page
from minllm.sweep.report.summary import describe_best, no_best, summary
from minllm.sweep.report.trials import about_bounds, best_of, rerun


def write_report(study: optuna.Study, folder: Path, *, metric: str, command: str) -> list[Path]:
    """Write summary.md and report.html into a folder, and return their paths.

    Args:
        metric: the metric that the study minimizes, as named in a run's summary.json.
        command: the command line that started the search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "summary.md": summary(study, metric=metric, command=command),
        "report.html": page(study, metric=metric, command=command),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def conclusion(study: optuna.Study, *, metric: str, written: Sequence[Path]) -> str:
    """Return the lines printed at the end: the best trial, how to run it again, and the report's files."""
    best, trials = best_of(study), study.get_trials(deepcopy=False)
    if best is None:
        lines = [no_best(trials)]
    else:
        sentence = " ".join(filter(None, [describe_best(best, metric), about_bounds(trials)]))
        lines = [sentence, f"To run it again: {rerun(best)}"]
    return "\n".join([*lines, f"Report: {', '.join(map(str, written))}"])
