"""Markdown that reads well as plain text too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minllm.errors import printable

TERMINAL = 80
"""Columns of a terminal that a table may take."""
LEAST_NAME = 16
"""What a name is shortened to before a column is left out."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Return a table of cells of Markdown; `sides` has l or r for each column."""
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


def fitted(
    head: Sequence[str], rows: Sequence[Sequence[str]], sides: str, width: int = TERMINAL
) -> list[str]:
    """Return a table that fits a terminal of this width, and below it what was left out, as a line each.

    Names in the first column are shortened first, and then columns are left out, the last ones first.
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
    """Return how wide the first column may be if so many columns are shown."""
    return width - widest(["", *head[1:shown]], [["", *row[1:shown]] for row in rows]) + 3


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of this width at most, which stay different: by their ends, or else by their places."""
    short = [
        name if len(name) <= width else f"{name[: width // 2]}…{name[len(name) - (width - 1) // 2 :]}"
        for name in names
    ]
    if len(set(short)) == len(set(names)):
        return [one[:width] for one in short]
    return [f"{place} {name}"[: width - 1] + "…" for place, name in enumerate(names, 1)]


def lines(texts: Sequence[str]) -> list[str]:
    """Return one part of a page with a line for each text; none where there are no texts."""
    return ["\n".join(texts)] if texts else []


def sh(line: str) -> str:
    """Return what is typed in a shell, in a block that nothing in it can end."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", line))]))
    return f"{fence}sh\n{printable(line)}\n{fence}"


def word(text: str) -> str:
    """Return a value as a plain word or number where Markdown makes nothing of it."""
    return text if re.fullmatch(r"[A-Za-z0-9.+-]*", text) else code(text)


def code(text: str) -> str:
    """Return text as Markdown leaves it alone, in a table too; as plain text where it would end the code or look like
    markup to a reader that knows no code.
    """
    if re.search(r"[`<]|\]\(", text):
        return plain(text)
    return "`" + one_line(text).replace("|", "\\|") + "`" if text else ""


def plain(line: str) -> str:
    """Return a line in which nothing means anything to Markdown."""
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line(line))
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", escaped)  # what would begin a list or end a heading


def one_line(text: str) -> str:
    """Return text without line breaks and control characters, which would end a cell or a paragraph."""
    return printable(text).replace("\n", "\\n").replace("\t", " ")
