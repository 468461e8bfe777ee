"""The report of a ranking: report.html and report.json in its folder, and what is printed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minllm.estimates import Estimate
from minllm.page import units
from minllm.page.html import document, escape, table
from minllm.page.markdown import fit_to_width
from minllm.study.ranking.cells import LEAST_MODELS, Agreement, Cell, Ranking
from minllm.study.ranking.correlation import Swap
from minllm.study.report.publishing import publish
from minllm.study.report.sentences import TIME_WAS_UP

FORMAT = 1
ABOUT = (
    "The rank correlation of two datasets is of the models' mean bits per byte: 1 if both rank them alike, −1 if in"
    " opposite orders. Its 95 % interval is from a bootstrap over models, and over the seeds of each."
)
ABOUT_SWAPS = (
    "A change of places is more than noise between seeds if the two models differ on each dataset by more than that"
    " (p ≤ 0.05 with Holm's correction over all pairs of models)."
)


def write_and_print(ranking: Ranking, folder: Path) -> None:
    """Write the report to a folder, print its summary, and answer --json. OSError if a file can't be written."""
    publish(folder, page(ranking), data(ranking), in_a_terminal(ranking))


# ---- sentences -----------------------------------------------------------------------------------


def first_sentence(agreement: Agreement) -> str:
    answers = {
        "equivalent": "{dataset} ranks the models as {baseline} does.",
        "worse": "{dataset} doesn't rank the models as {baseline} does.",
    }
    inconclusive = "Whether {dataset} ranks the models as {baseline} does is inconclusive."
    chosen = answers.get(agreement.word, inconclusive)
    return chosen.format(dataset=agreement.dataset, baseline=agreement.baseline)


def sentence(agreement: Agreement) -> str:
    """Return how two datasets agree, with the numbers."""
    models = len(agreement.models)
    if models < 2:
        return f"{first_sentence(agreement)} Fewer than two models were trained on both."
    few = f" An interval needs {LEAST_MODELS} models." * (models < LEAST_MODELS)
    pairs = math.comb(models, 2)
    moved = (
        f"{len(agreement.swaps)} of {pairs} pairs of models change places, {len(agreement.certain_swaps)} of them by"
        " more than noise between seeds."
    )
    return (
        f"{first_sentence(agreement)} {models} models: Spearman's ρ {correlation(agreement.spearman)}, Kendall's τ"
        f" {correlation(agreement.kendall)}.{few} {moved}"
    )


def correlation(found: Estimate) -> str:
    """Return a rank correlation with its interval: 0.951 [0.812, 0.993]."""
    if units.finite(found.value) is None:
        return units.NONE
    low, high = found.interval
    between = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
    return f"{found.value:.3f}{between}"


def swapped(agreement: Agreement, swap: Swap) -> str:
    """Return which two models change places, as a sentence."""
    better, worse = (agreement.models[place] for place in swap.models)
    ahead, behind = map(_distance, swap.differences)
    certain = "more than noise" if swap.is_certain else "may be noise"
    return (
        f"{better} is {ahead}better than {worse} on {agreement.baseline}, and {behind}worse on {agreement.dataset}"
        f" (p {units.p_value(swap.p)}: {certain})."
    )


def _distance(difference: float) -> str:
    """Return a difference as the words before better or worse; "" if one of the two diverged."""
    return f"{abs(difference):.4f} bits per byte " if math.isfinite(difference) else ""


def headline(ranking: Ranking) -> str:
    return " ".join(map(first_sentence, ranking.agreements))


def introduction(ranking: Ranking) -> str:
    return (
        f"{len(ranking.models)} models on {len(ranking.datasets)} datasets. Each model tried the same learning rates on"
        " each dataset, and the best was trained again with new seeds. Datasets rank alike if Spearman's ρ is"
        f" {ranking.alike:g} or more with its whole interval."
    )


def warnings(ranking: Ranking) -> list[str]:
    """Return what makes the ranks less certain than the intervals."""
    found = []
    for cell in ranking.cells.values():
        where = f"{cell.model} on {cell.dataset}"
        if lost := sum(map(math.isinf, cell.losses.values())):
            found.append(f"{where}: training diverged with {lost} of {len(cell.losses)} seeds.")
        if cell.tuning and cell.tuning.unsettled:
            found.append(f"The tuning of {where} isn't settled: {cell.tuning.unsettled}.")
    if bounded := dict.fromkeys(cell.model for cell in ranking.cells.values() if cell.is_bound):
        found.append(f"Losses of {', '.join(bounded)} are upper bounds, so true ranks may be better.")
    return found


# ---- tables --------------------------------------------------------------------------------------


def rank_rows(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of models, the best on the first dataset first."""
    head = ["model"]
    for number, _ in enumerate(ranking.datasets, 1):
        head += [f"loss on {number}", "rank", "learning rate"]
    order = sorted(ranking.models, key=lambda model: _sortable(ranking.cells[model, ranking.datasets[0]]))
    rows = []
    for model in order:
        row = [model]
        for dataset in ranking.datasets:
            cell = ranking.cells[model, dataset]
            rate = next(iter(cell.tuning.chosen.values())) if cell.tuning else None
            row += [units.bits(cell.mean), rank(ranking, cell), units.rate(rate)]
        rows.append(row)
    return head, rows


def about_columns(ranking: Ranking) -> str:
    """Return which dataset each number in the table's head stands for."""
    units_of = {True: "bits per byte above the corpus's floor", False: "bits per byte"}
    shown = (
        f"{n} is {name}, in {units_of[ranking.floors[name]]}" for n, name in enumerate(ranking.datasets, 1)
    )
    return f"{'; '.join(shown)}."


def rank(ranking: Ranking, cell: Cell) -> str:
    """Return the place of a model on a dataset, from 1 for the best; a dash without a run."""
    if cell.mean is None:
        return units.NONE
    own = (ranking.cells[model, cell.dataset].mean for model in ranking.models)
    return str(1 + sum(other is not None and other < cell.mean for other in own))


def _sortable(cell: Cell) -> tuple[bool, float]:
    return cell.mean is None, cell.mean or 0.0


def in_a_terminal(ranking: Ranking) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield headline(ranking)
    yield from (f"WARNING: {warning}" for warning in warnings(ranking))
    yield ""
    for agreement in ranking.agreements:
        yield f"- {sentence(agreement)}"
        yield from (f"  - {swapped(agreement, swap)}" for swap in agreement.swaps)
    yield ""
    head, rows = rank_rows(ranking)
    width = shutil.get_terminal_size((80, 24)).columns
    yield from fit_to_width(head, rows, "l" + "r" * (len(head) - 1), width)
    yield about_columns(ranking)
    yield ""
    yield f"{introduction(ranking)} {ABOUT} {ABOUT_SWAPS}"
    if not ranking.is_complete:
        yield TIME_WAS_UP


def page(ranking: Ranking) -> str:
    """Return report.html."""
    head, rows = rank_rows(ranking)
    cells = [[escape(cell) for cell in row] for row in rows]
    body = [
        f"<h1>{escape(headline(ranking))}</h1>",
        *(f"<p><b>{escape(warning)}</b></p>" for warning in warnings(ranking)),
        *(f"<p>{escape(sentence(agreement))}</p>" for agreement in ranking.agreements),
        f"<p>{escape(introduction(ranking))}</p>",
        *([f"<p>{escape(TIME_WAS_UP)}</p>"] if not ranking.is_complete else []),
        table([*map(escape, head)], cells, "l" + "r" * (len(head) - 1)),
        f'<p class="soft">{escape(about_columns(ranking))} {escape(ABOUT)}</p>',
        "<h2>Changes of places</h2>",
        f'<p class="soft">{escape(ABOUT_SWAPS)}</p>',
    ]
    for agreement in ranking.agreements:
        items = "".join(f"<li>{escape(swapped(agreement, swap))}</li>" for swap in agreement.swaps)
        body.append(f"<ul>{items or '<li>None.</li>'}</ul>")
    body += ["<h2>Again</h2>", f"<pre>{escape(ranking.command)}</pre>"]
    return document("Ranking", body, plots=False)


# ---- JSON ----------------------------------------------------------------------------------------


def data(ranking: Ranking) -> dict[str, Any]:
    """Return the contents of report.json. The `difference` of a verdict is Spearman's ρ, and its pairs are models."""
    return {
        "format": FORMAT,
        "status": "settled" if ranking.is_answered else "not settled",
        "complete": ranking.is_complete,
        "headline": headline(ranking),
        "introduction": introduction(ranking),
        "warnings": warnings(ranking),
        "alike": ranking.alike,
        "unit": "Spearman's ρ",
        "contests": [_agreement(agreement) for agreement in ranking.agreements],
        "cells": [
            {
                "model": cell.model,
                "dataset": cell.dataset,
                "above_floor": ranking.floors[cell.dataset],
                "upper_bound": cell.is_bound,
                "mean": cell.mean,
                "rank": int(place) if (place := rank(ranking, cell)) != units.NONE else None,
                "losses": [{"seed": seed, "loss": loss} for seed, loss in cell.losses.items()],
                "tuned": cell.tuning and dict(cell.tuning.chosen),
                "tuning_runs": cell.tuning and cell.tuning.runs,
                "tuning_unsettled": cell.tuning and cell.tuning.unsettled,
            }
            for cell in ranking.cells.values()
        ],
        "command": ranking.command,
    }


def _agreement(agreement: Agreement) -> dict[str, Any]:
    return {
        "arm": agreement.dataset,
        "baseline": agreement.baseline,
        "outcome": agreement.word,
        "sentence": sentence(agreement),
        "verdict": {
            "word": agreement.word,
            "pairs": len(agreement.models),
            "difference": agreement.spearman.value,
            "interval": list(agreement.spearman.interval),
            "confidence": 0.95,
        },
        "kendall": {"value": agreement.kendall.value, "interval": list(agreement.kendall.interval)},
        "swaps": [
            {
                "better": agreement.models[swap.models[0]],
                "worse": agreement.models[swap.models[1]],
                "differences": list(swap.differences),
                "p": swap.p,
                "certain": swap.is_certain,
                "sentence": swapped(agreement, swap),
            }
            for swap in agreement.swaps
        ],
    }
