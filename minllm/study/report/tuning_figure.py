"""The figure of tuning curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from minllm.page.units import bits, finite
from minllm.study.comparison import Comparison
from minllm.study.report.figures import LEGEND, MARGIN, banded, layout, wrapped
from minllm.study.report.tuning import best, curves_of
from minllm.study.tuning_curves import TuningCurve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def tuning_figure(comparison: Comparison) -> Figure:
    """Return a figure of the arms' tuning curves. An unbounded band extends beyond the edge of the figure."""
    from plotly.graph_objects import Figure

    curves = curves_of(comparison)
    ends = _ends(curves)
    places = {arm.name: i for i, arm in enumerate(comparison.arms)}
    figure = Figure(
        [trace for name, curve in curves.items() for trace in _curve(name, places[name], curve, ends)]
    )
    lines = sum(1 + wrapped(name).count("<br>") for name in curves)
    figure.update_layout(**layout(height=360 + 22 * lines), hovermode="closest")
    figure.update_layout(margin=MARGIN, legend=LEGEND)
    figure.update_xaxes(title_text="trials of tuning", tickformat="d")
    figure.update_yaxes(title_text=best(comparison.metric), range=ends)
    return figure


def _curve(name: str, index: int, curve: TuningCurve, ends: tuple[float, float]) -> Iterator[Any]:
    low = [max(value, ends[0]) for value in curve.low]
    high = [min(value, ends[1]) for value in curve.high]
    best = [value if math.isfinite(value) else None for value in curve.best]
    hover = [f"{bits(below)} to {bits(above)}" for below, above in zip(curve.low, curve.high)]
    return banded(name, index, curve.trials, best, (low, high), hover)


def _ends(curves: Mapping[str, TuningCurve]) -> tuple[float, float]:
    """Return the ends of the axis: a little beyond every finite value."""
    every = [value for curve in curves.values() for value in (*curve.best, *curve.low, *curve.high)]
    known = [value for value in every if finite(value) is not None] or [0.0, 1.0]
    room = 0.06 * (max(known) - min(known)) or 0.01
    return min(known) - room, max(known) + room
