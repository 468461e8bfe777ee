"""The figures of a comparison: each contest's difference with its interval, and the learning curves.

plotly takes a second to import, so it is imported only where a figure is made. The page's style colours lines and text,
for a light and a dark theme.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minllm.page.html import Choice, escape
from minllm.page.units import between, bits, finite, signed
from minllm.study.comparison import Comparison, Contest
from minllm.study.report.curves import Curve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GREY = "#8a8f98"
BAND = "rgba(138,143,152,.22)"  # the same, translucent
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GREY)
DASHES = ("solid", "dash", "dot")
WORDS = {"better": "#0072b2", "equivalent": "#009e73", "worse": "#d55e00", "inconclusive": GREY}
"""Colours of dots and lines; the page has darker ones for text, which needs more contrast."""

AXES = {"tokens": "tokens trained on", "FLOPs": "FLOPs of training", "seconds": "seconds of training"}
CLEAR = "rgba(0,0,0,0)"
LINE_LETTERS = 34  # fits a phone
MARGIN = {"l": 56, "r": 12, "t": 12, "b": 56}
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "maxheight": 0.7}


def colour(index: int) -> str:
    """Return the colour of the arm with this index. Colours repeat after the seventh arm, with dashed lines."""
    return COLOURS[index % len(COLOURS)]


# ---- differences ---------------------------------------------------------------------------------


def intervals(comparison: Comparison) -> Figure:
    """Return a figure with a row for each contest: the difference with its interval, each seed's, and the margin.

    Labels are above the rows, because a phone has no room beside them.
    """
    from plotly.graph_objects import Figure

    contests = comparison.contests
    labels = [_label(contest, comparison) for contest in contests]
    step = 1 + 0.3 * max(label.count("<br>") for label in labels)
    positions = [-step * i for i in range(len(contests))]
    top = 0.5 + 0.3 * (1 + labels[0].count("<br>"))
    figure = Figure([trace for pair in zip(contests, positions) for trace in _interval(*pair)])
    where = {"x": 0, "xref": "paper", "xanchor": "left", "yanchor": "bottom", "align": "left"}
    annotations = [
        {"text": label, "y": place + 0.14, **where, "showarrow": False, "font": {"size": 14}}
        for label, place in zip(labels, positions)
    ]
    margin = contests[0].verdict.margin
    figure.add_vrect(-margin, margin, fillcolor=BAND, line_width=0, layer="below")
    figure.add_vline(0, line={"color": GREY, "width": 1}, layer="below")
    figure.update_layout(
        **layout(height=round(76 * (top + step * (len(contests) - 1) + 0.5) + 64)), showlegend=False
    )
    # all at once, because plotly copies the existing ones whenever one is added
    figure.update_layout(annotations=annotations, margin={"l": 12, "r": 12, "t": 8, "b": 56})
    figure.update_xaxes(
        title_text=f"← better · difference in {comparison.metric.measured.partition(',')[0]} · worse →",
        range=_reach(contests),
        tickformat="~g",
    )
    figure.update_yaxes(visible=False, range=[positions[-1] - 0.5, top], fixedrange=True)
    return figure


def _label(contest: Contest, comparison: Comparison) -> str:
    same = all(other.baseline is comparison.baseline for other in comparison.contests)
    against = "" if same and len(comparison.contests) > 1 else f" against {contest.baseline.name}"
    label = f"{contest.arm.name}{against}: {contest.outcome}"
    return wrapped(label)


def wrapped(text: str) -> str:
    """Return text wrapped for the width of a phone."""
    return "<br>".join(escape(line) for line in textwrap.wrap(text, LINE_LETTERS))


def _interval(contest: Contest, place: float) -> Iterator[Any]:
    from plotly.graph_objects import Scatter

    verdict = contest.verdict
    own, shade = contest.differences, WORDS[verdict.word]
    yield Scatter(
        x=list(own.values()),
        y=[place - 0.2] * len(own),
        mode="markers",
        marker={"color": shade, "size": 6, "opacity": 0.55},
        text=[f"seed {seed}: {signed(value)}" for seed, value in own.items()],
        hoverinfo="text",
    )
    ends = [end for end in verdict.interval if finite(end) is not None]
    if len(ends) == 2:
        yield Scatter(
            x=ends, y=[place] * 2, mode="lines", line={"color": shade, "width": 4}, hoverinfo="skip"
        )
    if own:
        interval = (
            between(ends)
            if len(ends) == 2
            else "no interval from one pair"
            if len(own) == 1
            else "no interval"
        )
        yield Scatter(
            x=[verdict.difference],
            y=[place],
            mode="markers",
            marker={"color": shade, "size": 13, "symbol": "diamond"},
            text=[f"{signed(verdict.difference)}<br>{interval}"],
            hoverinfo="text",
        )


def _reach(contests: Sequence[Contest]) -> list[float]:
    """Return the range of the axis of differences."""
    verdicts = [contest.verdict for contest in contests]
    values = [
        *(value for contest in contests for value in contest.differences.values()),
        *(end for verdict in verdicts for end in (*verdict.interval, verdict.margin, -verdict.margin)),
    ]
    known = [value for value in values if finite(value) is not None]
    room = 0.06 * (max(known) - min(known))
    return [min(known) - room, max(known) + room]


# ---- learning curves -----------------------------------------------------------------------------


def learning_curves(
    curves: Sequence[Curve], floor: float | None
) -> tuple[Figure, Mapping[str, Sequence[Choice]]]:
    """Return the arms' curves over tokens, and the buttons that change the axis."""
    from plotly.graph_objects import Figure

    shown = [(i, curve) for i, curve in enumerate(curves) if curve.tokens]
    figure = Figure([trace for i, curve in shown for trace in _curve(curve, i)])
    if floor is not None:
        figure.add_trace(_floor(floor, curves))
    lines = sum(1 + wrapped(curve.arm).count("<br>") for _, curve in shown)
    figure.update_layout(**layout(height=420 + 22 * lines), hovermode="closest")
    figure.update_layout(margin=MARGIN, legend=LEGEND)
    figure.update_xaxes(title_text=AXES["tokens"], type="linear")
    figure.update_yaxes(title_text="bits per byte")
    return figure, _switches([curve for _, curve in shown], floor is not None)


def _curve(curve: Curve, index: int) -> Iterator[Any]:
    return banded(curve.arm, index, curve.tokens, curve.mean, (curve.low, curve.high))


def banded(
    arm: str,
    index: int,
    positions: Sequence[float],
    values: Sequence[float | None],
    band: tuple[Sequence[float], Sequence[float]],
    hover: Sequence[str] | None = None,
) -> Iterator[Any]:
    """Yield an arm's band, from low to high, and its line, which the legend toggles together.

    Args:
        index: the arm's place among the arms, which selects its colour.
        hover: the text that each value shows when it is hovered over; by default the ends of the band.
    """
    from plotly.graph_objects import Scatter

    red, green, blue = (int(colour(index)[at : at + 2], 16) for at in (1, 3, 5))
    together = {"legendgroup": str(index), "name": wrapped(arm)}
    low, high = band
    yield Scatter(
        x=_band_outline(positions),
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        **together,
    )
    yield Scatter(
        x=positions,
        y=values,
        mode="lines+markers" if len(positions) <= 20 else "lines",
        line={"color": colour(index), "width": 2.5, "dash": DASHES[index // len(COLOURS) % len(DASHES)]},
        marker={"size": 6},
        customdata=hover or [f"{bits(below)} to {bits(above)}" for below, above in zip(low, high)],
        hovertemplate="%{y:.4f} (%{customdata})<extra>" + escape(arm) + "</extra>",
        **together,
    )


def _floor(floor: float, curves: Sequence[Curve]) -> Any:
    """Return the floor's line, hidden at first if it is so far below the curves that it would squeeze them."""
    from plotly.graph_objects import Scatter

    values = [value for curve in curves for value in (*curve.low, *curve.high)]
    far = bool(values) and min(values) - floor > 1.5 * (max(values) - min(values))
    return Scatter(
        x=_ends(curves, "tokens"),
        y=[floor] * 2,
        mode="lines",
        line={"color": GREY, "width": 1.5, "dash": "dash"},
        name=f"floor {bits(floor)}{' (click to show)' * far}",
        visible="legendonly" if far else True,
        hovertemplate=f"{bits(floor)}<extra>floor</extra>",
    )


def _switches(curves: Sequence[Curve], has_floor: bool) -> dict[str, list[Choice]]:
    def along(axis: str) -> list[list[float]]:
        positions = [getattr(curve, axis.lower()) for curve in curves]
        lines = [line for place in positions for line in (_band_outline(place), place)]
        return [*lines, *([_ends(curves, axis.lower())] if has_floor else [])]

    def turned(title: str) -> dict[str, Any]:
        return {"xaxis.title.text": title, "xaxis.autorange": True}

    return {
        "horizontal axis": [Choice(axis, {"x": along(axis)}, turned(title)) for axis, title in AXES.items()],
        "its scale": [
            Choice(scale, {}, {"xaxis.type": scale, "xaxis.autorange": True}) for scale in ("linear", "log")
        ],
    }


def _band_outline(positions: Sequence[float]) -> list[float]:
    """Return the outline of a band: along its upper edge, and back along its lower edge."""
    return [*positions, *positions[::-1]]


def _ends(curves: Sequence[Curve], axis: str) -> list[float]:
    positions = [position for curve in curves for position in getattr(curve, axis)]
    return [min(positions), max(positions)] if positions else []


def layout(height: int) -> dict[str, Any]:
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "xaxis": {"zeroline": False, "automargin": True, "title": {"font": {"size": 13}}},
        "yaxis": {"zeroline": False, "automargin": True, "title": {"font": {"size": 13}}},
        "dragmode": False,
    }
