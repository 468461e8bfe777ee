"""Self-contained HTML pages: they work offline, because plotly's code is included where it is needed."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minllm.errors import printable

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
.scroll { overflow-x: auto; margin: 1rem 0; }
th, td { padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid var(--line); }
th { text-align: left; vertical-align: bottom; font-weight: 600; color: var(--soft); }
td { vertical-align: top; }
th.n, td.n { text-align: right; padding-right: 0; }
.soft { color: var(--soft); }
.figure { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
.figure .main-svg { background: none !important; }
.figure .main-svg text:not(.hoverlayer *) { fill: var(--ink) !important; }
.figure .gridlayer path { stroke: var(--line) !important; }
.switch { display: inline-flex; margin: .25rem .75rem .25rem .25rem; border: 1px solid var(--line); border-radius: 6px;
  overflow: hidden; }
.switch button { border: 0; padding: .35rem .8rem; background: none; color: var(--soft); cursor: pointer;
  font: 14px/1.4 system-ui, sans-serif; }
.switch button[aria-pressed=true] { background: var(--box); color: var(--ink); }
"""

SWITCHING = """
for (const button of document.querySelectorAll('.switch button')) button.addEventListener('click', () => {
  const figure = button.closest('.figure').querySelector('.js-plotly-plot');
  Plotly.update(figure, ...JSON.parse(button.dataset.update));
  for (const one of button.parentNode.children) one.setAttribute('aria-pressed', one === button);
});
"""


@dataclass(frozen=True)
class Choice:
    """A button next to a figure, and the changes to its traces and layout when it is pressed."""

    label: str
    traces: Mapping[str, Any]
    layout: Mapping[str, Any]


def escape(text: str) -> str:
    """Return text escaped for HTML, without control characters that could affect the text around it."""
    return html.escape(printable(text))


def document(title: str, body: Sequence[str], style: str = "", *, plots: bool = True) -> str:
    """Return a page with the given HTML parts as its body.

    Args:
        style: CSS rules that are added after STYLE.
        plots: whether it has figures of plotly, whose code is large.
    """
    script = ""
    if plots:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}{style}</style>",
            script,
            "</head><body>",
            *body,
            f"<script>{SWITCHING}</script>" if any('class="switch"' in part for part in body) else "",
            "</body></html>",
            "",
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Return a table of HTML cells, which scrolls on its own if it is too wide.

    Args:
        head: the columns' headings; [] for none.
        sides: l or r for each column; r is for numbers.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        side = {"l": "", "r": ' class="n"'}
        return (
            "<tr>" + "".join(f"<{tag}{side[at]}>{cell}</{tag}>" for cell, at in zip(cells, sides)) + "</tr>"
        )

    lines = [*([line(head, "th")] if head else []), *(line(cells, "td") for cells in rows)]
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def figure_html(
    figure: Figure, name: str | None = None, switches: Mapping[str, Sequence[Choice]] | None = None
) -> str:
    """Return the HTML of a figure.

    Args:
        name: the id of its element.
        switches: rows of buttons, by what they choose; the first button of each row is the initial state.
    """
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displayModeBar": False, "responsive": True},
        div_id=name,
    )
    rows = "".join(_switch(what, choices) for what, choices in (switches or {}).items())
    return f'<div class="figure">{rows}{plot}</div>'


def _switch(what: str, choices: Sequence[Choice]) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(choice is choices[0]).lower()}"'
        f' data-update="{escape(json.dumps([choice.traces, choice.layout]))}">{escape(choice.label)}</button>'
        for choice in choices
    )
    return f'<div class="switch" role="group" aria-label="{escape(what)}">{buttons}</div>'
