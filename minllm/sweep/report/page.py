"""The report of a search as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial

from minllm.page.html import document, escape, figure_html, table
from minllm.sweep.report.figures import memory_map, search_plots
from minllm.sweep.report.summary import describe_best, describe_memory, no_best, ten_best
from minllm.sweep.report.trials import MEANINGS, about_bounds, best_of, counted, rerun, shown

CLEAR = "rgba(0,0,0,0)"
STYLE = """
th.n:not(:last-child), td.n:not(:last-child) { padding-right: 1.25rem; }
h2:last-of-type + .figure { background: #e9e7e3; }
h2:last-of-type + .figure .main-svg text:not(.hoverlayer *) { fill: #1c2026 !important; }
"""
"""The last figure's lines range from dark blue to white, so it needs a tinted background in dark mode too."""

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def page(study: optuna.Study, *, metric: str, command: str) -> str:
    """Return the text of report.html."""
    trials = study.get_trials(deepcopy=False)
    return document(
        f"Search results: {metric}",
        [
            "<h1>Search results</h1>",
            f'<p class="soft">This search minimized {escape(metric)}:</p>',
            f"<pre>{escape(command)}</pre>",
            *_best(best_of(study), metric, no_best(trials)),
            f"<p>{escape(about_bounds(trials))}</p>" if about_bounds(trials) else "",
            *_section("Ten best trials", _ten_best(trials, metric)),
            *_section("How the trials ended", _counts(counted(trials))),
            *_section("Memory", f"<p>{escape(' '.join(describe_memory(trials)))}</p>"),
            _drawn(memory_map(trials, metric)),
            *(
                part
                for heading, plot in search_plots(study, metric).items()
                for part in _section(heading, _drawn(plot))
            ),
        ],
        STYLE,
    )


def _section(heading: str, body: str) -> list[str]:
    return [f"<h2>{escape(heading)}</h2>", body]


def _best(best: FrozenTrial | None, metric: str, otherwise: str) -> list[str]:
    if best is None:
        return _section("Best trial", f"<p>{escape(otherwise)}</p>")
    rows = [[f"<code>{escape(name)}</code>", escape(shown(value))] for name, value in best.params.items()]
    folder = best.user_attrs.get("run")
    return [
        *_section("Best trial", f"<p>{escape(describe_best(best, metric))}</p>"),
        table([], rows, "lr"),
        f"<pre>{escape(rerun(best))}</pre>" if rerun(best) else "",
        f'<p class="soft">Run folder: <code>{escape(folder)}</code></p>' if folder else "",
    ]


def _ten_best(trials: Sequence[FrozenTrial], metric: str) -> str:
    figures, settings, rows = ten_best(trials, metric)
    if not rows:
        return "<p>No trial has completed.</p>"
    sides = "r" * len(figures) + "l" * len(settings)
    return table(
        [escape(name) for name in (*figures, *settings)],
        [[escape(cell) for cell in row] for row in rows],
        sides,
    )


def _counts(counts: Mapping[str, int]) -> str:
    rows = [[escape(state), escape(MEANINGS.get(state, "")), str(count)] for state, count in counts.items()]
    return table([], [*rows, ["all", "", str(sum(counts.values()))]], "llr")


def _drawn(plot: Figure | str) -> str:
    """Return a figure as HTML, or the sentence that replaces it."""
    if isinstance(plot, str):
        return f"<p>{escape(plot)}</p>"
    plot.update_layout(
        title=None,
        template="none",  # the page's style sets the colors, for light and dark mode
        height=420,
        margin={"l": 70, "r": 24, "t": 48, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
        colorway=["#0072b2", "#d55e00"],
    )
    plot.update_xaxes(zeroline=False, automargin=True)
    plot.update_yaxes(zeroline=False, automargin=True)
    return figure_html(plot)
