"""Figures of a search: Optuna's own plots, and a map of the trials by memory.

plotly takes a second to import, so it's imported only where a figure is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from minllm.page.html import escape
from minllm.page.units import MIB
from minllm.schema.overrides import short_names
from minllm.sweep.report.importance import evaluator, importances, quietly, with_short_names
from minllm.sweep.report.trials import (
    counted,
    counted_noun,
    described,
    memory_of,
    ranked,
    shown,
    state_of,
    varying,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

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
MEMORY = "memory, MiB"
BLUE = "#0072b2"
MOST_LINES = 300


def search_plots(study: optuna.Study, metric: str) -> dict[str, Figure | str]:
    """Return Optuna's plots keyed by heading; a plot that can't be drawn is replaced by a sentence."""
    complete = sum(state_of(trial) == "complete" for trial in study.get_trials(deepcopy=False))
    history, importance, best = "Search history", "Parameter importance", "Parameters of the best trials"
    if complete < 2:
        have = "only one" if complete else "none"
        return dict.fromkeys((history, importance, best), f"This needs two complete trials; there is {have}.")
    copy = with_short_names(study)
    names = varying(copy.get_trials(deepcopy=False))
    from optuna import visualization

    with quietly():
        plots = {
            history: visualization.plot_optimization_history(copy, target_name=metric),
            importance: "This needs two complete trials with different values.",
            best: "No parameter was searched.",
        }
        if importances(study):
            plots[importance] = visualization.plot_param_importances(copy, evaluator(complete), names)
            plots[importance].update_traces(marker={"color": BLUE})
        if names:
            plots[best] = visualization.plot_parallel_coordinate(best_part(copy), names, target_name=metric)
    return plots


def best_part(study: optuna.Study) -> optuna.Study:
    """Return a study of the best `MOST_LINES` trials, which is as many as a parallel coordinate plot can show."""
    if len(study.get_trials(deepcopy=False)) <= MOST_LINES:
        return study
    part = optuna.create_study(study_name=study.study_name, direction=study.direction)
    part.add_trials(ranked(study.get_trials(deepcopy=False))[:MOST_LINES])
    return part


def memory_map(trials: Sequence[FrozenTrial], metric: str) -> Figure | str:
    """Return a scatter plot of how the trials ended, over the two parameters that affect memory most.

    If the search has one parameter, the other axis is the memory itself.
    """
    axes = _axes(trials)
    if not axes:
        return "No two trials differ in a parameter yet."
    placed = [trial for trial in trials if all(_coordinate(axis, trial) is not None for axis in axes)]
    if not placed:
        return "The trials recorded no memory use."
    from plotly.graph_objects import Figure

    shorts = short_names(varying(trials))
    figure = Figure(
        [_markers(placed, state, axes, metric, shorts) for state, count in counted(placed).items() if count]
    )
    for update, axis in zip((figure.update_xaxes, figure.update_yaxes), axes):
        update(title=escape(shorts.get(axis, axis)), type=_scale(axis, trials))
        if _scale(axis, trials) == "log":
            update(tickformat="~g", **_decades([_coordinate(axis, trial) for trial in placed]))
    if len(placed) < len(trials):
        figure.add_annotation(
            text=f"{counted_noun(len(trials) - len(placed), 'trial')} without values on both axes not shown",
            **dict(xref="paper", yref="paper", x=0, y=1.06, xanchor="left", showarrow=False),
        )
    return figure


def _markers(
    placed: Sequence[FrozenTrial], state: str, axes: Sequence[str], metric: str, shorts: Mapping[str, str]
) -> Scatter:
    """Return the markers of the trials with one state."""
    from plotly.graph_objects import Scatter

    trials = [trial for trial in placed if state_of(trial) == state]
    colour, symbol = MARKERS.get(state, UNMARKED)
    return Scatter(
        x=[_coordinate(axes[0], trial) for trial in trials],
        y=[_coordinate(axes[1], trial) for trial in trials],
        name=state,
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 10, "opacity": 0.75, "line": {"width": 1}},
        text=[_hover(trial, metric, shorts) for trial in trials],
        hoverinfo="text",
        showlegend=True,
    )


def _axes(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the map's two axes: parameters that differ between trials, or a single one and MEMORY.

    Numeric parameters come first, ordered by how closely memory correlates with them.
    """
    differ = [
        name
        for name in varying(trials)
        if len({shown(trial.params[name]) for trial in trials if name in trial.params}) > 1
    ]
    names = sorted(
        differ, key=lambda name: (not _is_number(name, trials), -_correlation_with_memory(name, trials))
    )
    return [*names, MEMORY][:2] if names else []


def _correlation_with_memory(name: str, trials: Sequence[FrozenTrial]) -> float:
    """Return how strongly log(memory) correlates with a parameter, scaled by the share of trials that have it."""
    known = [trial for trial in trials if name in trial.params and memory_of(trial)]
    if not _is_number(name, trials) or len(known) < 2:
        return 0.0
    values = [float(trial.params[name]) for trial in known]
    sizes = [math.log(memory_of(trial)) for trial in known]
    if np.std(values) == 0 or np.std(sizes) == 0:
        return 0.0
    return abs(float(np.corrcoef(values, sizes)[0, 1])) * len(known) / len(trials)


def _coordinate(axis: str, trial: FrozenTrial) -> float | str | None:
    """Return a trial's coordinate on an axis; None if it has none."""
    if axis == MEMORY:
        return memory_of(trial) / MIB or None
    if axis not in trial.params:
        return None
    value = trial.params[axis]
    return value if _is_numeric(value) else shown(value)


def _scale(axis: str, trials: Sequence[FrozenTrial]) -> str:
    if axis == MEMORY:
        return "linear"
    if not _is_number(axis, trials):
        return "category"
    distributions = [trial.distributions[axis] for trial in trials if axis in trial.distributions]
    return "log" if all(getattr(distribution, "log", False) for distribution in distributions) else "linear"


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """Return where a logarithmic axis has labels: at powers of ten, and also at 2 and 5 if it spans few decades."""
    decades = math.log10(max(values) / min(values)) if min(values) > 0 else 0
    return {"dtick": 1 if decades > 2 else "D2"}


def _is_number(name: str, trials: Sequence[FrozenTrial]) -> bool:
    """Whether all values of a parameter are numbers, including those of a choice between numbers."""
    return all(_is_numeric(trial.params[name]) for trial in trials if name in trial.params)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hover(trial: FrozenTrial, metric: str, shorts: Mapping[str, str]) -> str:
    description = described(trial)
    lines = [
        f"trial {description.number}: {description.state}",
        description.value and f"{metric} {description.value}",
        *(
            f"{short} {description.settings[name]}"
            for name, short in shorts.items()
            if name in description.settings
        ),
        description.predicted and f"predicted {description.predicted}",
        description.peak and f"measured {description.peak}",
        description.why,
    ]
    return "<br>".join(escape(line) for line in lines if line)
