"""Markdown that is readable as plain text too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minllm.errors import printable

TERMINAL = 80
"""The maximum width of a table in a terminal, in characters."""
LEAST_NAME = 16
"""The width that names are shortened to before columns are left out."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Return a Markdown table; `sides` has l or r for each column."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows)]
    rule = ["-" * (width - 1) + (":" if side == "r" else "-") for side, width in zip(sides, widths)]
    padded = [
        [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, side, width in zip(cells, sides, widths)
        ]
        for cells in [head, rule, *rows]
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)


def fit_to_width(
    head: Sequence[str], rows: Sequence[Sequence[str]], sides: str, width: int = TERMINAL
) -> list[str]:
    """Return a table that fits a terminal of this width, followed by a line for each kind of omission.

    Names in the first column are shortened first; then columns are left out, starting with the last.
    """
    shown, notes = len(head), []
    if widest(head, rows) > width:
        while shown > 2 and room_for_names(head, rows, shown, width) < LEAST_NAME:
            shown -= 1
        names = shortened([row[0] for row in rows], max(LEAST_NAME, room_for_names(head, rows, shown, width)))
        if names != [row[0] for row in rows]:
            notes.append("Names are shortened here.")
        if shown < len(head):
            notes.append(f"Left out here: {', '.join(head[shown:])}.")
        rows = [[name, *row[1:]] for name, row in zip(names, rows)]
    return [table(head[:shown], [row[:shown] for row in rows], sides[:shown]), *notes]


def widest(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(max(3, *map(len, column)) + 3 for column in zip(head, *rows)) + 1


def room_for_names(head: Sequence[str], rows: Sequence[Sequence[str]], shown: int, width: int) -> int:
    """Return the width that is left for the first column if `shown` columns are shown."""
    return width - widest(["", *head[1:shown]], [["", *row[1:shown]] for row in rows]) + 3


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most this width, kept distinct by their ends, or else by numbers."""
    short = [
        name if len(name) <= width else f"{name[: width // 2]}…{name[len(name) - (width - 1) // 2 :]}"
        for name in names
    ]
    if len(set(short)) == len(set(names)):
        return [name[:width] for name in short]
    return [f"{place} {name}"[: width - 1] + "…" for place, name in enumerate(names, 1)]


def lines(texts: Sequence[str]) -> list[str]:
    """Return one part of a page with a line for each text; [] if there are no texts."""
    return ["\n".join(texts)] if texts else []


def sh(line: str) -> str:
    """Return a shell command in a code block that its contents can't end."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", line))]))
    return f"{fence}sh\n{printable(line)}\n{fence}"


def word(text: str) -> str:
    """Return a value as plain text if it has no meaning in Markdown, or else as code."""
    return text if re.fullmatch(r"[A-Za-z0-9.+-]*", text) else code(text)


def code(text: str) -> str:
    """Return text as inline code that is also safe in a table, or as plain text if it could end the code or be read as
    markup by a simple parser.
    """
    if re.search(r"[`<]|\]\(", text):
        return plain(text)
    return "`" + one_line(text).replace("|", "\\|") + "`" if text else ""


def plain(line: str) -> str:
    """Return a line with all of Markdown's special characters escaped."""
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line(line))
    return re.sub(
        r"^(\s*\d*)([-+=.)])", r"\1\\\2", escaped
    )  # the start of a list or the underline of a heading


def one_line(text: str) -> str:
    """Return text without line breaks and control characters, which could end a cell or a paragraph."""
    return printable(text).replace("\n", "\\n").replace("\t", " ")
