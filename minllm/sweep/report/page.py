"""What a search found, as one page that needs nothing beside it: plotly's code is in it, once."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial

from minllm.sweep.report.figures import memory_map, search_plots
from minllm.sweep.report.summary import best_in_words, memory_story, no_best
from minllm.sweep.report.trials import MEANINGS, best_of, counted, rerun, shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1c2026; --soft: #626a75; --paper: #fbfaf8; --line: #dedbd5; --box: #f1efeb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --soft: #9aa1ab; --paper: #16181c; --line: #33373e; --box: #20242a; }
}
body { margin: 0 auto; max-width: 60rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", Cambria, Georgia, serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; }
pre, code { font: .82em/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
pre { background: var(--box); padding: .75rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { text-align: right; padding-right: 0; }
.soft { color: var(--soft); }
.figure { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
"""


def page(study: optuna.Study, *, metric: str, command: str) -> str:
    """Return the text of report.html."""
    trials = study.get_trials(deepcopy=False)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>What the search for {escape(metric)} found</title>",
            f"<style>{STYLE}</style>",
            f"<script>{_plotly_js()}</script>",
            "</head><body>",
            "<h1>What the search found</h1>",
            f'<p class="soft">The lowest {escape(metric)} was searched with</p>',
            f"<pre>{escape(command)}</pre>",
            *_best(best_of(study), metric, no_best(trials)),
            *_section("What became of the trials", _counts(counted(trials))),
            *_section("What fitted in memory", f"<p>{escape(' '.join(memory_story(trials)))}</p>"),
            _drawn(memory_map(trials, metric)),
            *(
                part
                for heading, plot in search_plots(study, metric).items()
                for part in _section(heading, _drawn(plot))
            ),
            "</body></html>",
            "",
        ]
    )


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _section(heading: str, body: str) -> list[str]:
    return [f"<h2>{escape(heading)}</h2>", body]


def _best(best: FrozenTrial | None, metric: str, otherwise: str) -> list[str]:
    if best is None:
        return _section("The best trial", f"<p>{escape(otherwise)}</p>")
    rows = [(f"<code>{escape(name)}</code>", escape(shown(value))) for name, value in best.params.items()]
    folder = best.user_attrs.get("run")
    return [
        *_section("The best trial", f"<p>{escape(best_in_words(best, metric))}</p>"),
        _table(rows),
        f"<pre>{escape(rerun(best))}</pre>" if rerun(best) else "",
        f'<p class="soft">Its folder is <code>{escape(folder)}</code>.</p>' if folder else "",
    ]


def _counts(found: Mapping[str, int]) -> str:
    total = ("all", "", str(sum(found.values())))
    return _table(
        [(escape(state), escape(MEANINGS.get(state, "")), str(n)) for state, n in found.items()] + [total]
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    """Return a table of cells of HTML; the last of each row is a figure."""
    lines = (
        "".join(f"<td>{cell}</td>" for cell in cells[:-1]) + f'<td class="n">{cells[-1]}</td>'
        for cells in rows
    )
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _drawn(plot: Figure | str) -> str:
    """Return a figure's place in the page, or the sentence that stands for it."""
    if isinstance(plot, str):
        return f"<p>{escape(plot)}</p>"
    plot.update_layout(
        title=None, template="plotly_white", height=460, margin={"l": 70, "r": 30, "t": 50, "b": 60}
    )
    drawn = plot.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return f'<div class="figure">{drawn}</div>'
