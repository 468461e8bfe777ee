"""Mixers × probes as an SVG picture, which a page includes and a README can show."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from minllm.page.html import escape
from minllm.study.profile.cells import Cell, Probe, Profile, above_chance
from minllm.study.profile.sentences import of_cell, percent

WIDTH, HEIGHT = 92, 46
"""Of a cell."""
LETTER = 7.6
"""The width to keep for a letter of a name, in the widest of the usual fonts."""
LONGEST = 26
"""Letters in a line of a mixer's name."""
LEGEND = (
    "Bold: solved. Colour: from chance to what is possible. Line: the 95 % interval, from 0 to 100 %;",
    "its tick is chance. Not bold: ran out of steps. Asterisk: seeds diverged or didn't run.",
)
TOP = 22
FONT = "font-family='system-ui, sans-serif'"
INK, SOFT, PAPER, EMPTY = "#1c2026", "#626a75", "#fbfaf8", "#efece6"
LOW, HIGH = (239, 243, 250), (11, 78, 140)
"""The colours at chance and at the ceiling."""


def heatmap(profile: Profile) -> str:
    """Return the picture: colour says how far above chance a mixer is, a line at the bottom has the interval."""
    names = {mixer: textwrap.wrap(mixer, LONGEST, break_on_hyphens=False) for mixer in profile.mixers}
    left = 24 + LETTER * max(len(line) for lines in names.values() for line in lines)
    head = 24 + 0.62 * LETTER * max(len(probe.name) for probe in profile.probes) + TOP
    # the last name leans to the right, past its column
    over = 0.79 * LETTER * len(profile.probes[-1].name) - WIDTH / 2 + 12
    legend = 48 + 0.85 * LETTER * max(map(len, LEGEND))
    width = max(left + WIDTH * len(profile.probes) + max(24.0, over), legend)
    height = head + HEIGHT * len(profile.mixers) + 54
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}'"
        f" role='img' aria-label='Accuracy of each mixer on each probe'>",
        f"<rect width='{width:.0f}' height='{height:.0f}' rx='8' fill='{PAPER}'/>",
    ]
    for column, probe in enumerate(profile.probes):
        parts += _heading(probe, left + WIDTH * column, head)
    for row, mixer in enumerate(profile.mixers):
        y = head + HEIGHT * row
        parts += _lines(names[mixer], left - 10, y + HEIGHT / 2 + 4)
        for column, probe in enumerate(profile.probes):
            parts += _cell(profile.cells[mixer, probe.name], left + WIDTH * column, y)
    below = head + HEIGHT * len(profile.mixers) + 20
    parts += [_text(24, below + 15 * line, text, SOFT, 11) for line, text in enumerate(LEGEND)]
    parts.append("</svg>")
    return "\n".join(parts)


def _lines(lines: list[str], x: float, middle: float) -> Iterator[str]:
    """Yield the lines of a mixer's name, around the middle of its row."""
    for line, text in enumerate(lines):
        yield _text(x, middle + 15 * (line - (len(lines) - 1) / 2), text, INK, 13, "end")


def _heading(probe: Probe, x: float, y: float) -> Iterator[str]:
    chance = "chance unknown" if probe.chance is None else f"chance {percent(probe.chance)}"
    yield _text(x + WIDTH / 2 - 6, y - TOP, probe.name, INK, 13, turned=True)
    yield _text(x + WIDTH / 2, y - 7, chance, SOFT, 10, "middle")


def _cell(cell: Cell, x: float, y: float) -> Iterator[str]:
    scale = above_chance(cell)
    mixed = [round(low + (high - low) * (scale or 0.0)) for low, high in zip(LOW, HIGH)]
    fill = EMPTY if scale is None else f"rgb({','.join(map(str, mixed))})"
    ink = "#ffffff" if (scale or 0.0) > 0.5 else INK
    yield f"<g><title>{escape(of_cell(cell))}</title>"
    yield f"<rect x='{x + 1:.1f}' y='{y + 1}' width='{WIDTH - 2}' height='{HEIGHT - 2}' rx='3' fill='{fill}'/>"
    estimate = cell.estimate
    if estimate is None:
        yield _text(x + WIDTH / 2, y + 26, "diverged" if cell.lost else "not run", SOFT, 11, "middle")
    else:
        weight = "700" if cell.state == "solved" else "400"
        number = f"{100 * estimate.value:.1f}" if estimate.value < 1 else "100"
        mark = "" if cell.is_complete and not cell.lost else "*"
        yield _text(x + WIDTH / 2, y + 22, number + mark, ink, 14, "middle", weight=weight)
        start, length, line = x + 12, WIDTH - 24, y + HEIGHT - 11
        low, high = estimate.interval
        yield _line(start, start + length, line, ink, 1, 0.35)
        yield _line(start + length * low, start + length * high, line, ink, 3, 1.0)
        if cell.probe.chance is not None:
            at = start + length * cell.probe.chance
            yield f"<path d='M{at:.1f} {line - 4}v8' stroke='{ink}' stroke-width='1'/>"
        if cell.probe.ceiling < 1:
            at = start + length * cell.probe.ceiling
            yield f"<path d='M{at:.1f} {line - 4}v8' stroke='{ink}' stroke-width='1' stroke-dasharray='2 1'/>"
    yield "</g>"


def _line(start: float, end: float, y: float, colour: str, width: float, opacity: float) -> str:
    end = max(end, start + 1.5)
    return f"<path d='M{start:.1f} {y}H{end:.1f}' stroke='{colour}' stroke-width='{width}' stroke-opacity='{opacity}'/>"


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    size: int,
    anchor: str = "start",
    *,
    weight="400",
    turned=False,
) -> str:
    turn = f" transform='rotate(-38 {x:.1f} {y:.1f})'" if turned else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' font-size='{size}' font-weight='{weight}' {FONT}"
        f" text-anchor='{anchor}'{turn}>{escape(text)}</text>"
    )
