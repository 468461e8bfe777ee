"""Accuracy against difficulty: a picture for each task that was run at several difficulties."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minllm.page.html import escape
from minllm.study.profile.cells import Probe, Profile
from minllm.study.profile.heatmap import FONT, INK, PAPER, SOFT

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 620, 300, 52, 34, 190, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5f6b7a")


def difficulty_curves(profile: Profile) -> dict[str, str]:
    """Return a picture for each task with several difficulties, by its name."""
    return {
        task: _curves(profile, task, probes)
        for task, probes in profile.tasks.items()
        if len(probes) > 1 and all(probe.difficulty is not None for probe in probes)
    }


def _curves(profile: Profile, task: str, probes: Sequence[Probe]) -> str:
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    places = _places([probe.difficulty or 0.0 for probe in probes])
    xs = [LEFT + across * place for place in places]
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img'"
        f" aria-label='Accuracy on {escape(task)} against its difficulty'>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' rx='8' fill='{PAPER}'/>",
        _text(LEFT, 20, f"{task}: accuracy in %", INK, 13),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + down * (1 - share)
        parts.append(f"<path d='M{LEFT} {y:.1f}h{across}' stroke='{SOFT}' stroke-opacity='.2'/>")
        parts.append(_text(LEFT - 8, y + 4, f"{100 * share:.0f}", SOFT, 11, "end"))
    parts += [
        _text(x, HEIGHT - 26, f"{probe.difficulty:g}", SOFT, 11, "middle") for x, probe in zip(xs, probes)
    ]
    chances = [probe.chance for probe in probes]
    if None not in chances:
        path = _path(xs, [TOP + down * (1 - chance) for chance in chances])
        parts.append(f"<path d='{path}' fill='none' stroke='{SOFT}' stroke-dasharray='3 3'/>")
        parts.append(_text(LEFT, HEIGHT - 8, "Dashed: chance.", SOFT, 11))
    for number, mixer in enumerate(profile.mixers):
        colour, dashes = COLOURS[number % len(COLOURS)], "6 3" if number >= len(COLOURS) else "none"
        known = [
            (x, cell.estimate)
            for x, probe in zip(xs, probes)
            if (cell := profile.cells[mixer, probe.name]).estimate is not None
        ]
        ys = [TOP + down * (1 - estimate.value) for _, estimate in known]
        path = _path([x for x, _ in known], ys)
        parts.append(
            f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dashes}'/>"
        )
        for (x, estimate), y in zip(known, ys):
            low, high = (TOP + down * (1 - end) for end in estimate.interval)
            parts.append(f"<path d='M{x:.1f} {low:.1f}V{high:.1f}' stroke='{colour}' stroke-opacity='.5'/>")
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>")
        key = TOP + 8 + 17 * number
        parts.append(f"<path d='M{WIDTH - RIGHT + 14} {key}h16' stroke='{colour}' stroke-width='2'/>")
        parts.append(_text(WIDTH - RIGHT + 36, key + 4, mixer, INK, 12))
    return "\n".join([*parts, "</svg>"])


def _places(difficulties: Sequence[float]) -> list[float]:
    """Return where difficulties are between 0 and 1: by their logarithms if they are all positive."""
    scaled = [math.log(d) for d in difficulties] if min(difficulties) > 0 else list(difficulties)
    span = max(scaled) - min(scaled)
    return [(value - min(scaled)) / span if span else 0.5 for value in scaled]


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys)) if xs else ""


def _text(x: float, y: float, text: str, colour: str, size: int, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' font-size='{size}' {FONT} text-anchor='{anchor}'>"
        f"{escape(text)}</text>"
    )
