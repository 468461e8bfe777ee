"""A profile in words."""

from __future__ import annotations

from collections.abc import Sequence

from minllm.study.profile.cells import Cell, Profile

ABOUT_ACCURACY = (
    "The accuracy is the share of answer tokens that are the most probable ones, each given the right ones before it,"
    " on held-out documents, averaged over seeds."
)
ABOUT_INTERVALS = (
    "Intervals are at 95 %, and Korn and Graubard's: exact ones for shares (Clopper and Pearson's), of as many"
    " independent answers as have the variance that is found between seeds, because accuracies near 1 aren't normal and"
    " answers of one run resemble each other. Where two or three seeds differ, an interval may reach from 0 to 100 %."
    " Where all seeds agree or there is one, documents stand for seeds."
)
ABOUT_STATES = (
    "A run ends when it has solved its probe. One that hasn't when its steps are used up ran out: with more steps,"
    " another width or other settings it may still solve it."
)


def headline(profile: Profile) -> str:
    """Return how many probes each mixer solves, the best first."""
    counts = {
        mixer: sum(profile.cells[mixer, probe.name].state == "solved" for probe in profile.probes)
        for mixer in profile.mixers
    }
    order = sorted(profile.mixers, key=lambda mixer: (-counts[mixer], -profile.rank(mixer)))
    return f"Solved, of {counted(profile.probes, 'probe')}: {', '.join(f'{mixer} {counts[mixer]}' for mixer in order)}."


def introduction(profile: Profile) -> str:
    solved = next(iter(profile.cells.values())).solved_at
    return (
        f"{counted(profile.mixers, 'mixer')} on {counted(profile.probes, 'probe')}, {profile.equal}. Each mixer tried"
        f" the same learning rates and weight decays on each probe, and the best were trained again with new seeds. A"
        f" run ends when its accuracy reaches {percent(solved)} of what is possible."
    )


def of_cell(cell: Cell) -> str:
    """Return what a mixer does on a probe, as a sentence."""
    if not cell.ended:
        return f"{cell.mixer} wasn't trained on {cell.probe.name}: the time was up."
    if not cell.runs:
        seeds = "every seed" if cell.is_complete else f"{cell.ended} of {cell.planned} seeds"
        rest = "" if cell.is_complete else ": the time was up before the others had run"
        return f"{cell.mixer} diverged on {cell.probe.name} with {seeds}{rest}."
    found, ended = accuracy(cell), cell.ended
    if cell.state == "solved":
        seeds = "" if len(cell.solved) == ended else f", with {len(cell.solved)} of {ended} seeds"
        return f"{cell.mixer} solves {cell.probe.name} ({found}{seeds}, after at most {cell.most_steps:,} steps)."
    some = f", solved with {len(cell.solved)} of {ended} seeds" if cell.solved else ""
    chance = "" if cell.probe.chance is None else f"; chance is {percent(cell.probe.chance)}"
    if cell.state == "diverged":
        return f"{cell.mixer} diverges on {cell.probe.name} with {len(cell.lost)} of {ended} seeds ({found}{chance})."
    unsettled = (
        f" Its tuning isn't settled: {cell.tuning.unsettled}."
        if cell.tuning and cell.tuning.unsettled
        else ""
    )
    why = "the time was up before all seeds had run" if cell.state == "incomplete" else "it ran out"
    return (
        f"{cell.mixer} doesn't solve {cell.probe.name} within {cell.most_steps:,} steps"
        f" ({found}{some}{chance}): {why}.{unsettled}"
    )


def accuracy(cell: Cell) -> str:
    """Return a cell's accuracy with its interval: 99.6 % [99.1, 99.8]."""
    assert cell.estimate is not None
    low, high = cell.estimate.interval
    return f"{percent(cell.estimate.value)} [{100 * low:.1f}, {100 * high:.1f}]"


def counted(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def by_probe(profile: Profile) -> Sequence[tuple[str, list[str]]]:
    """Return for each probe the sentences of its mixers, the most accurate first."""
    found = []
    for probe in profile.probes:
        cells = [profile.cells[mixer, probe.name] for mixer in profile.mixers]
        cells.sort(key=lambda cell: -(cell.estimate.value if cell.estimate else -1))
        found.append((probe.name, [of_cell(cell) for cell in cells]))
    return found
