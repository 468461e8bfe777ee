"""The figures of grades: bars of the arms' values, and recall by distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minllm.page.html import Choice, escape
from minllm.study.grade_contests import format_of, title_of
from minllm.study.grades import Grading
from minllm.study.recall import Recall, Share
from minllm.study.report.figures import DASHES, GREY, LEGEND, MARGIN, colour, layout, wrapped

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BAR, ABOVE = 24, 34
"""Pixels of an arm's bar, and of a measure's title above its bars."""


def value_bars(grading: Grading) -> Figure:
    """Return a figure with a block for each measure: a bar for each arm, with its interval."""
    from plotly.graph_objects import Bar
    from plotly.subplots import make_subplots

    arms = [arm for arm in grading.arms if arm.runs]
    measures = [measure for measure in grading.measures if any(measure.name in arm.values for arm in arms)]
    block = ABOVE + 26 + BAR * len(arms)
    height = block * len(measures) + 60
    figure = make_subplots(
        rows=len(measures), cols=1, vertical_spacing=min(ABOVE + 26, 0.9 * block) / (height - 60)
    )
    notes = []
    for row, measure in enumerate(measures, 1):
        unit = format_of(measure)
        share = 100 if measure.unit == "share" else 1
        for index, arm in enumerate(arms):
            known = arm.values.get(measure.name)
            if known is None:
                continue
            low, high = known.interval
            is_known = math.isfinite(high - low)
            figure.add_trace(
                Bar(
                    x=[share * known.value],
                    y=[wrapped(arm.arm)],
                    orientation="h",
                    name=wrapped(arm.arm),
                    marker={"color": colour(index), "opacity": 0.8},
                    error_x={
                        "type": "data",
                        "array": [share * (high - known.value) if is_known else 0],
                        "arrayminus": [share * (known.value - low) if is_known else 0],
                        "visible": is_known,
                        "color": GREY,
                    },
                    text=[unit.value(known.value)],
                    textposition="none",
                    hovertemplate=f"%{{text}}<extra>{escape(arm.arm)}</extra>",
                    showlegend=False,
                ),
                row=row,
                col=1,
            )
        notes.append(
            {
                "text": escape(title_of(measure) + ", %" * (measure.unit == "share")),
                **{"x": 0, "xref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False},
                **{"y": 1, "yref": f"y{row if row > 1 else ''} domain", "font": {"size": 14}},
            }
        )
    figure.update_layout(**layout(height=height), bargap=0.25)
    figure.update_layout(annotations=notes, margin={"l": 12, "r": 12, "t": 40, "b": 20})
    figure.update_xaxes(rangemode="tozero", zeroline=False, tickformat="~g", automargin=True)
    figure.update_yaxes(autorange="reversed", automargin=True, fixedrange=True)
    return figure


def recall_figure(recall: Recall) -> tuple[Figure, str, dict[str, Sequence[Choice]]]:
    """Return recall over distance as a line for each arm, its name, and the buttons that choose the kind of fact."""
    from plotly.graph_objects import Figure, Scatter

    kinds = recall.kinds
    first = traces_of(recall, kinds[0])
    figure = Figure(
        [
            Scatter(
                x=list(recall.labels),
                mode="lines+markers",
                name=wrapped(arm),
                line={"color": colour(index), "width": 2.5, "dash": DASHES[index // 7 % len(DASHES)]},
                connectgaps=False,
                hovertemplate="%{y:.1f} %, %{text}<extra>" + escape(arm) + "</extra>",
                y=first["y"][index],
                text=first["text"][index],
                error_y={
                    "type": "data",
                    "color": colour(index),
                    "thickness": 1,
                    "array": first["error_y.array"][index],
                    "arrayminus": first["error_y.arrayminus"][index],
                },
            )
            for index, arm in enumerate(recall.arms)
        ]
    )
    figure.update_layout(**layout(height=380 + 22 * len(recall.arms)), hovermode="closest")
    figure.update_layout(margin=MARGIN, legend=LEGEND)
    figure.update_xaxes(title_text="tokens since the fact was last mentioned", type="category")
    figure.update_yaxes(title_text="recalled, %", range=[0, 104])
    switches = {"facts": [Choice(kind, traces_of(recall, kind), {}) for kind in kinds]}
    return figure, "recall", switches


def traces_of(recall: Recall, kind: str) -> dict[str, list[list[Any]]]:
    """Return the values of each arm's line for a kind of fact, as an update of its traces."""
    shares = [
        [recall.of(kind, arm, place) or Share(0, 0) for place in range(len(recall.labels))]
        for arm in recall.arms
    ]
    return {
        "y": [[100 * share.share if share.of else None for share in own] for own in shares],
        "error_y.array": [[100 * (share.high - share.share) for share in own] for own in shares],
        "error_y.arrayminus": [[100 * (share.share - share.low) for share in own] for own in shares],
        "text": [[f"{share.right} of {share.of}" for share in own] for own in shares],
    }
