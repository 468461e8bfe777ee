"""What a search found, drawn: Optuna's own plots, and a map of what fitted in memory.

plotly takes a second to import, so it's imported where something is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from minllm.sweep.importance import evaluator, retold
from minllm.sweep.trials import (
    MIB,
    counted,
    described,
    in_words,
    is_complete,
    short_names,
    shown,
    state_of,
    varying,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MARKERS = {
    "complete": ("#0072b2", "circle"),
    "reused": ("#56b4e9", "circle-open"),
    "pruned: pruner": ("#e69f00", "diamond"),
    "pruned: predicted": ("#d55e00", "x"),
    "pruned: memory": ("#a50f15", "square"),
    "pruned: killed": ("#67000d", "star"),
    "pruned: diverged": ("#cc79a7", "triangle-up"),
    "pruned: time": ("#009e73", "hourglass"),
    "failed": ("#000000", "cross"),
}
UNMARKED = ("#8a8f98", "circle-open")


def search_plots(study: optuna.Study, metric: str) -> dict[str, Figure | str]:
    """Return Optuna's plots by their headings; a sentence in place of one that can't be drawn."""
    complete = sum(map(is_complete, study.get_trials(deepcopy=False)))
    headings = ["How the search went", "Which parameters decided", "Which settings did well"]
    if complete < 2:
        have = "one" if complete else "none"
        return {heading: f"This needs two complete trials; there is {have}." for heading in headings}
    told = retold(study)
    names = varying(told.get_trials(deepcopy=False))
    if not names:
        return {heading: "No parameter was searched." for heading in headings}
    from optuna import visualization

    figures = [
        visualization.plot_optimization_history(told, target_name=metric),
        visualization.plot_param_importances(told, evaluator(complete), names, target_name=metric),
        visualization.plot_parallel_coordinate(told, names, target_name=metric),
    ]
    return dict(zip(headings, figures))


def memory_map(trials: Sequence[FrozenTrial], metric: str) -> Figure | str:
    """Return a scatter of what became of the trials, by the two parameters that matter most for memory.

    Where the search has one parameter, the other axis is the memory itself.
    """
    axes = _axes(trials)
    if not axes:
        return "There are no two trials yet that differ in a parameter."
    x, y = axes if len(axes) == 2 else (axes[0], None)
    placed = [trial for trial in trials if x in trial.params and _height(trial, y) is not None]
    if not placed:
        return "Nothing is known of the trials' memory."
    from plotly.graph_objects import Figure, Scatter

    shorts = short_names(varying(trials))
    figure = Figure(
        Scatter(
            x=[_place(trial.params[x], x, trials) for trial in group],
            y=[_height(trial, y) if y is None else _place(trial.params[y], y, trials) for trial in group],
            name=state,
            mode="markers",
            marker={
                **dict(zip(("color", "symbol"), MARKERS.get(state, UNMARKED))),
                "size": 10,
                "opacity": 0.75,
                "line": {"width": 1},
            },
            text=[_hover(trial, metric, shorts) for trial in group],
            hoverinfo="text",
        )
        for state in counted(placed)
        if (group := [trial for trial in placed if state_of(trial) == state])
    )
    figure.update_xaxes(title=html.escape(shorts[x]), type=_scale(x, trials))
    figure.update_yaxes(title="memory, MiB", rangemode="tozero")
    if y is not None:
        figure.update_yaxes(title=html.escape(shorts[y]), type=_scale(y, trials), rangemode="normal")
    if len(placed) < len(trials):
        missing = in_words(len(trials) - len(placed), "trial")
        figure.add_annotation(
            text=f"{missing} without these parameters or their memory: not shown",
            xref="paper", yref="paper", x=0, y=1.06, showarrow=False, xanchor="left",
        )  # fmt: skip
    return figure


def _axes(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return one or two parameters that differ between trials: numbers first, the most tied to memory first."""
    differ = [name for name in varying(trials) if len({shown(value) for value in _values(name, trials)}) > 1]
    return sorted(differ, key=lambda name: (not _is_number(name, trials), -_tie(name, trials)))[:2]


def _tie(name: str, trials: Sequence[FrozenTrial]) -> float:
    """Return how closely the logarithm of memory follows a number; less where few trials have that parameter."""
    if not _is_number(name, trials):
        return 0.0
    known = [trial for trial in trials if name in trial.params and _memory(trial)]
    if len(known) < 2:
        return 0.0
    values = [float(trial.params[name]) for trial in known]
    sizes = [math.log(_memory(trial)) for trial in known]
    if np.std(values) == 0 or np.std(sizes) == 0:
        return 0.0
    return abs(float(np.corrcoef(values, sizes)[0, 1])) * len(known) / len(trials)


def _values(name: str, trials: Sequence[FrozenTrial]) -> list[Any]:
    return [trial.params[name] for trial in trials if name in trial.params]


def _is_number(name: str, trials: Sequence[FrozenTrial]) -> bool:
    """Whether all values of a parameter are numbers, as those of a choice between widths are too."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in _values(name, trials))


def _memory(trial: FrozenTrial) -> float | None:
    """Return the bytes a trial was predicted to take, which even one that never started has; else those measured."""
    return trial.user_attrs.get("predicted_bytes") or trial.user_attrs.get("peak_bytes")


def _height(trial: FrozenTrial, y: str | None) -> Any:
    """Return what a trial has on the other axis; None where it has no place on it."""
    if y is not None:
        return shown(trial.params[y]) if y in trial.params else None
    memory = _memory(trial)
    return memory / MIB if memory else None


def _place(value: Any, name: str, trials: Sequence[FrozenTrial]) -> Any:
    return value if _is_number(name, trials) else shown(value)


def _scale(name: str, trials: Sequence[FrozenTrial]) -> str:
    if not _is_number(name, trials):
        return "category"
    distributions = [trial.distributions[name] for trial in trials if name in trial.distributions]
    return "log" if all(getattr(distribution, "log", False) for distribution in distributions) else "linear"


def _hover(trial: FrozenTrial, metric: str, shorts: Mapping[str, str]) -> str:
    seen = described(trial)
    lines = [
        f"trial {seen.number}: {seen.state}",
        seen.value and f"{metric} {seen.value}",
        *(f"{short} {seen.settings[name]}" for name, short in shorts.items() if name in seen.settings),
        seen.predicted and f"predicted {seen.predicted}",
        seen.peak and f"measured {seen.peak}",
        seen.why,
    ]
    return "<br>".join(html.escape(line) for line in lines if line)
