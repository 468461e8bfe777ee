"""Shows in a terminal how a text is tokenized: its pieces in alternating colours, with their ids below."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

from minllm.tokenizer import Tokenizer

# characters that are invisible or move the cursor, and what to show instead
VISIBLE = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
BACKGROUNDS = ("\x1b[30;48;5;153m", "\x1b[30;48;5;223m")  # black on light blue, and on light orange
Cell = tuple[str, str]  # a piece as displayed, and its id
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def print_pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    """Print the pieces of a text with their token ids below, and return the ids."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # in case the terminal can't display every character
    ids = tokenizer.encode(text)
    cells = [(visible(tokenizer.token_bytes(token)), str(token)) for token in ids]
    rows = coloured if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else barred
    for line in lines(cells, shutil.get_terminal_size().columns):
        print("\n".join(rows(line)))
    n_bytes = len(text.encode())
    each = f", {n_bytes / len(ids):.2f} bytes per token" if ids else ""
    print(f"{len(ids):,} tokens, {n_bytes:,} bytes{each}")
    return ids


def visible(piece: bytes) -> str:
    """Return a token's bytes as text for display; incomplete characters are shown as hexadecimal bytes."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)
    return "".join(VISIBLE.get(char) or (char if char.isprintable() else f"<{ord(char):X}>") for char in text)


def lines(cells: Sequence[Cell], columns: int) -> Iterator[list[Cell]]:
    """Yield lines of cells that fit the terminal; a line break in the text also ends a line."""
    line: list[Cell] = []
    for cell in cells:
        if line and sum(map(cell_width, [*line, cell])) + len(line) > columns:
            yield line
            line = []
        line.append(cell)
        if cell[0].endswith(VISIBLE["\n"]):
            yield line
            line = []
    if line:
        yield line


def coloured(line: Sequence[Cell]) -> list[str]:
    """Return two rows, pieces and ids, in alternating colours."""
    colours = itertools.cycle(BACKGROUNDS)
    pieces = " ".join(f"{next(colours)}{padded(cell[0], cell)}{PLAIN}" for cell in line)
    return [pieces, DIM + " ".join(padded(cell[1], cell) for cell in line) + PLAIN]


def barred(line: Sequence[Cell]) -> list[str]:
    """Return two rows, pieces and ids, separated by bars."""
    return ["│".join(padded(cell[row], cell) for cell in line) for row in (0, 1)]


def padded(text: str, cell: Cell) -> str:
    return text + " " * (cell_width(cell) - width(text))


def cell_width(cell: Cell) -> int:
    return max(map(width, cell))


def width(text: str) -> int:
    """Return the display width of a text in columns: combining marks take none, wide characters two."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
