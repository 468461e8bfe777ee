"""The figures of a ladder: its losses and differences against its size, and its losses against what they cost.

plotly takes a second to import, so it is imported only where a figure is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minllm.page.units import finite
from minllm.study.arms import Arm
from minllm.study.intervals import mean_of
from minllm.study.measures import METRIC
from minllm.study.report.figures import GREY, LEGEND, MARGIN, banded, colour, layout, wrapped
from minllm.study.scaling.answer import AHEAD, Answer
from minllm.study.scaling.ladders import AXES, Ladder
from minllm.study.scaling.law import Fit
from minllm.study.scaling.series import flops_of, params_of, tokens_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def against_size(ladder: Ladder) -> Figure:
    """Return the losses of both arms with their laws, and below them their difference, against the size."""
    from plotly.subplots import make_subplots

    made = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for index, (name, law, side) in enumerate(
        zip((ladder.baseline, ladder.arm), ladder.laws, ("baseline", "arm"))
    ):
        for trace in _losses(ladder, index, name, law, side):
            made.add_trace(trace, row=1, col=1)
    if ladder.answer:
        for trace in _differences(ladder.answer):
            made.add_trace(trace, row=2, col=1)
    made.add_hline(0, line={"color": GREY, "width": 1}, row=2, col=1)
    made.update_layout(**layout(height=640), margin=MARGIN, legend=LEGEND)
    made.update_xaxes(type="log", zeroline=False)
    made.update_xaxes(title_text=AXES[ladder.axis], row=2, col=1)
    made.update_yaxes(title_text="bits per byte", zeroline=False, row=1, col=1)
    made.update_yaxes(title_text="difference", zeroline=False, row=2, col=1)
    return made


def seconds_of(arm: Arm) -> float:
    return float(np.mean(arm.values("wall_seconds")))


COSTS: Mapping[str, Callable[[Arm], float]] = {
    "parameters": params_of,
    "tokens": tokens_of,
    "FLOPs of training": flops_of,
    "seconds of training": seconds_of,
}


def against_costs(ladder: Ladder) -> Figure:
    """Return the mean losses of both arms with their intervals, against parameters, tokens, FLOPs and seconds.

    With several sizes at each budget of FLOPs, there is a line for each budget.
    """
    from plotly.subplots import make_subplots

    made = make_subplots(rows=2, cols=2, vertical_spacing=0.18, horizontal_spacing=0.12)
    for panel, (title, cost_of) in enumerate(COSTS.items()):
        where = {"row": 1 + panel // 2, "col": 1 + panel % 2}
        for trace in _costs(ladder, cost_of, in_legend=panel == 0):
            made.add_trace(trace, **where)
        made.update_xaxes(title_text=title, **where)
    made.update_layout(**layout(height=640), margin=MARGIN, legend=LEGEND)
    made.update_xaxes(type="log", zeroline=False)
    made.update_yaxes(zeroline=False)
    made.update_yaxes(title_text="bits per byte", col=1)
    return made


def _costs(ladder: Ladder, cost_of: Callable[[Arm], float], *, in_legend: bool) -> Iterator[Any]:
    for index, name in enumerate((ladder.baseline, ladder.arm)):
        for line, pairs in enumerate(ladder.series.budgets or [ladder.series.pairs]):
            arms = sorted((pair[index] for pair in pairs), key=cost_of)
            means = [mean_of(arm.values(METRIC)) for arm in arms]
            ends = [
                [end if finite(end) is not None else mean.value for end in mean.interval] for mean in means
            ]
            low, high = zip(*ends)
            for trace in banded(
                name, index, [cost_of(arm) for arm in arms], [mean.value for mean in means], (low, high)
            ):
                trace.showlegend = bool(trace.showlegend is not False and in_legend and line == 0)
                yield trace


def _losses(ladder: Ladder, index: int, name: str, law: Fit | None, side: str) -> Iterator[Any]:
    from plotly.graph_objects import Scatter

    points = [(rung.size, loss) for rung in ladder.rungs for loss in getattr(rung, side)]
    if law and not law.problem:
        sizes = np.geomspace(ladder.rungs[0].size, ladder.rungs[-1].size * AHEAD[-1], 40)
        scales = _scales(ladder, name, law, sizes)
        low, high = np.quantile([other.at(*scales) for other in law.resampled], (0.025, 0.975), axis=0)
        yield from banded(
            name, index, sizes.tolist(), law.law.at(*scales).tolist(), (low.tolist(), high.tolist())
        )
    yield Scatter(
        x=[size for size, _ in points],
        y=[loss for _, loss in points],
        mode="markers",
        marker={"color": colour(index), "size": 7},
        legendgroup=str(index),
        name=wrapped(name),
        showlegend=not law or bool(law.problem),
    )


def _scales(ladder: Ladder, name: str, law: Fit, sizes: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return what a law is of at some sizes of a ladder."""
    if not law.is_of_tokens:
        return [sizes]
    at = (ladder.baseline, ladder.arm).index(name)
    places = [(best.params.value, best.tokens) for best in ladder.bests[at]] or [
        (params_of(pair[at]), tokens_of(pair[at])) for pair in ladder.series.pairs
    ]
    known = np.log([rung.size for rung in ladder.rungs])
    return [
        np.exp(np.polynomial.Polynomial.fit(known, np.log(values), 1)(np.log(sizes)))
        for values in zip(*places)
    ]


def _differences(found: Answer) -> Iterator[Any]:
    from plotly.graph_objects import Scatter

    sizes = [size for size, _ in found.path]
    low, high = zip(*(estimate.interval for _, estimate in found.path))
    middle = [estimate.value for _, estimate in found.path]
    shade = 2  # after the two arms
    for trace in banded("difference", shade, sizes, middle, (low, high)):
        trace.showlegend = False
        yield trace
    points = [(rung.size, value) for rung in found.rungs for value in rung.differences]
    yield Scatter(
        x=[size for size, _ in points],
        y=[value for _, value in points],
        mode="markers",
        marker={"color": colour(shade), "size": 7},
        showlegend=False,
    )
