"""What becomes of differences at scale, as sentences, tables, a figure and JSON; see `minllm.study.scaling`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from minllm.estimates import Estimate
from minllm.page import units
from minllm.study.intervals import mean_of
from minllm.study.report.figures import GREY, LEGEND, MARGIN, banded, colour, layout, wrapped
from minllm.study.report.measures import Table
from minllm.study.scaling.answer import AHEAD, Answer
from minllm.study.scaling.check import Check
from minllm.study.scaling.ladders import AXES, Ladder
from minllm.study.scaling.law import Fit
from minllm.study.scaling.rates import RateLine

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEADING = "Scale"
ABOUT = (
    "Each arm was trained at several sizes. “Holds” means that the difference, relative to what can still be learnt"
    " (the loss above the floor), stays within a factor of 2 from the largest size to 16 times that size; “grows” and"
    " “shrinks” that it certainly changes; “crosses” that its sign changes. Predictions average over straight and bent"
    " lines in the logarithms of size and loss, so that they don't rest on a power law; docs/scale.md has their"
    " coverage."
)
ABOUT_RUNGS = (
    "Measured differences are means over the pairs, with Student's interval; fitted ones use all sizes."
)
ABOUT_ANSWERS = (
    "Predicted differences have 95 % prediction intervals for a mean over as many pairs as the smallest rung has. The"
    " speed-up is how many times the size the baseline needs at the largest rung for the arm's loss, by its law. The"
    " change is the factor of the relative difference with each doubling of the size."
)
ABOUT_LAWS = (
    "L = E + A / size^α, fitted by the Huber loss of log L (δ = 0.001) from a grid of starting points, with percentile"
    " intervals from a bootstrap over runs."
)


ABOUT_CHECK = (
    "The prediction was written to prediction.json before the first run at this size. It isn't used for anything else,"
    " and neither are these runs."
)
ABOUT_RATES = (
    "The rates that were tuned, with their standard errors as factors; the slope of the logarithm of the rate against"
    " that of the size, with its standard error; and what all runs were trained with."
)


def sentences(ladders: Sequence[Ladder]) -> list[str]:
    """Return a sentence or two for each ladder."""
    return [f"{ladder.arm} against {ladder.baseline}: {_outcome(ladder)}" for ladder in ladders]


def tables(ladders: Sequence[Ladder]) -> Iterator[Table]:
    """Yield the tables of answers, rungs and laws, whose first two columns name arms."""
    axis = AXES[ladders[0].axis]
    answered = [(ladder, ladder.answer) for ladder in ladders if ladder.answer]
    if answered:
        ahead = [f"at {factor} ×" for factor in AHEAD]
        head = ["arm", "against", "answer", "speed-up", "change", *ahead]
        yield Table("Answers", ABOUT_ANSWERS, head, [_answered(ladder, found) for ladder, found in answered])
    head = ["arm", "against", axis, "pairs", "difference", "interval", "fitted", "interval"]
    yield Table("Rungs", ABOUT_RUNGS, head, [row for ladder in ladders for row in _rungs(ladder)])
    laws = dict(law for ladder in ladders for law in zip((ladder.baseline, ladder.arm), ladder.laws))
    rows = [_law(name, law) for name, law in laws.items() if law]
    if rows:
        yield Table("Laws", ABOUT_LAWS, ["arm", "", "E", "A", "α", "its interval", "problem"], rows)
    if rows := list(_checks(ladders)):
        head = ["arm", "against", axis, "pairs", "predicted", "interval", "measured", "interval", "inside"]
        yield Table("Check", ABOUT_CHECK, head, rows)
    lines = dict(line for ladder in ladders for line in zip((ladder.baseline, ladder.arm), ladder.rates))
    if rows := [[name, "", *_rates(line)] for name, line in lines.items() if line]:
        yield Table("Learning rates", ABOUT_RATES, ["arm", "", "tuned", "slope", "used"], rows)


def figure(ladder: Ladder) -> Figure:
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


def data(ladders: Sequence[Ladder]) -> list[dict[str, Any]]:
    """Return the ladders as JSON."""
    return [
        {
            "arm": ladder.arm,
            "baseline": ladder.baseline,
            "axis": ladder.axis,
            "floor": ladder.floor,
            "rungs": [asdict(rung) for rung in ladder.rungs],
            "laws": [law and _law_data(law) for law in ladder.laws],
            "answer": ladder.answer and {**asdict(ladder.answer), "rungs": None},
            "problem": ladder.problem,
            "rates": [line and {**asdict(line), "sentence": line.sentence} for line in ladder.rates],
            "check": ladder.check and _check_data(ladder.check),
        }
        for ladder in ladders
    ]


def in_a_line(ladders: Sequence[Ladder]) -> list[dict[str, Any]]:
    """Return the answers as --json prints them."""
    return [
        {
            "arm": ladder.arm,
            "baseline": ladder.baseline,
            "axis": ladder.axis,
            "answer": ladder.answer and ladder.answer.word,
            "predictions": [asdict(at) for at in ladder.answer.predictions] if ladder.answer else [],
            "inside": ladder.check.is_inside if ladder.check else None,
        }
        for ladder in ladders
    ]


def _outcome(ladder: Ladder) -> str:
    if ladder.answer is None:
        return f"no answer. {ladder.problem}"
    checked = f" {check_sentence(ladder.check)}" if ladder.check else ""
    return f"{ladder.answer.word}. {ladder.answer.sentence}{checked}"


def check_sentence(check: Check) -> str:
    """Return how a prediction turned out."""
    if check.is_inside is None:
        return f"The check can't be scored: {check.problem or 'it has no pair yet.'}"
    low, high = check.prediction.difference.interval
    outcome = "inside" if check.is_inside else "outside"
    return (
        f"At {check.prediction.factor:.3g} times the largest size, the measured difference was"
        f" {check.measured.value:+.4f}: {outcome} the predicted {low:+.4f} to {high:+.4f}."
    )


def _answered(ladder: Ladder, found: Answer) -> list[str]:
    return [
        ladder.arm,
        ladder.baseline,
        found.word,
        _factor(found.speed_up),
        _factor(found.change),
        *(_signed(prediction.difference) for prediction in found.predictions),
    ]


def _rungs(ladder: Ladder) -> Iterator[list[str]]:
    for at, rung in enumerate(ladder.rungs):
        measured = mean_of(rung.differences)
        fitted = ladder.answer.fitted[at] if ladder.answer else None
        yield [
            ladder.arm,
            ladder.baseline,
            units.count(rung.size),
            str(len(rung.arm)),
            units.signed(measured.value),
            units.between(measured.interval),
            units.signed(fitted.value) if fitted else units.NONE,
            units.between(fitted.interval) if fitted else units.NONE,
        ]


def _checks(ladders: Sequence[Ladder]) -> Iterator[list[str]]:
    for ladder in ladders:
        if check := ladder.check:
            predicted, measured = check.prediction.difference, check.measured if check.differences else None
            yield [
                ladder.arm,
                ladder.baseline,
                units.count(check.prediction.size),
                str(len(check.differences)),
                units.signed(predicted.value),
                units.between(predicted.interval),
                units.signed(measured.value) if measured else units.NONE,
                units.between(measured.interval) if measured else units.NONE,
                {True: "yes", False: "no", None: check.problem or units.NONE}[check.is_inside],
            ]


def _check_data(check: Check) -> dict[str, Any]:
    return {
        "prediction": asdict(check.prediction),
        "differences": list(check.differences),
        "measured": asdict(check.measured) if check.differences else None,
        "inside": check.is_inside,
        "problem": check.problem,
    }


def _rates(line: RateLine) -> list[str]:
    tuned = "; ".join(
        f"{units.rate(best.rate)} (× {2**best.error:.3g}) at {units.count(best.size)}" for best in line.optima
    )
    slope = units.NONE if math.isnan(line.error) else f"{line.estimated:+.2f} ± {line.error:.2f}"
    return [tuned, slope, line.sentence]


def _law(name: str, law: Fit) -> list[str]:
    low, high = _exponents(law)
    return [
        name,
        "",
        units.bits(law.law.floor),
        f"{law.law.amounts[0]:.4g}",
        f"{law.law.exponents[0]:.3f}",
        f"{low:.3f} to {high:.3f}",
        law.problem or "",
    ]


def _exponents(law: Fit) -> tuple[float, float]:
    """Return the interval of a law's first exponent."""
    return law.interval([other.exponents[0] for other in law.resampled])


def _law_data(law: Fit) -> dict[str, Any]:
    return {
        **asdict(law.law),
        "exponent_interval": _exponents(law),
        "residuals": law.residuals.tolist(),
        "problem": law.problem,
    }


def _losses(ladder: Ladder, index: int, name: str, law: Fit | None, side: str) -> Iterator[Any]:
    from plotly.graph_objects import Scatter

    points = [(rung.size, loss) for rung in ladder.rungs for loss in getattr(rung, side)]
    if law and not law.problem:
        sizes = np.geomspace(ladder.rungs[0].size, ladder.rungs[-1].size * AHEAD[-1], 40)
        low, high = np.quantile([other.at(sizes) for other in law.resampled], (0.025, 0.975), axis=0)
        yield from banded(
            name, index, sizes.tolist(), law.law.at(sizes).tolist(), (low.tolist(), high.tolist())
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


def _factor(estimate: Estimate) -> str:
    if units.finite(estimate.value) is None:
        return units.NONE
    low, high = estimate.interval
    return f"{estimate.value:.3g} × ({low:.3g} to {high:.3g})"


def _signed(estimate: Estimate) -> str:
    return f"{units.signed(estimate.value)} ({units.between(estimate.interval)})"
