"""The last step of a report: its files, what is printed, and the answer to --json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minllm.errors import printable
from minllm.page.terminal import answer
from minllm.runs.folder import write_text
from minllm.study.report.data import json_text, plain


def publish(folder: Path, page: str, content: Mapping[str, Any], summary: Iterable[str]) -> None:
    """Write report.html and report.json to a folder, print the summary, and answer --json.

    Args:
        page: the contents of report.html.
        content: the contents of report.json.
        summary: lines.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", page)
    write_text(folder / "report.json", json_text(content))
    print(printable("\n".join(summary)))
    print(printable(f"The report is {folder / 'report.html'} and {folder / 'report.json'}"), flush=True)
    answer({**plain(content), "report": str(folder / "report.json")})
