"""What becomes of differences at scale, as sentences, tables and JSON; see `minllm.study.scaling`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minllm.estimates import Estimate
from minllm.page import units
from minllm.study.intervals import mean_of
from minllm.study.report.measures import Table
from minllm.study.scaling.answer import AHEAD, Answer
from minllm.study.scaling.check import Check
from minllm.study.scaling.ladders import AXES, Ladder
from minllm.study.scaling.law import Fit
from minllm.study.scaling.rates import RateLine

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
ABOUT_RUNGS_OF_BUDGETS = (
    "Each rung is a budget of FLOPs, and its losses are those at the best size of each arm: the law's, plus the mean of"
    " how far the runs with a seed are from it. Measured differences are means over the pairs, with Student's interval;"
    " fitted ones use all budgets."
)
ABOUT_BESTS = (
    "The size at which the law of parameters and tokens is lowest for the FLOPs of a budget, with percentile intervals"
    " from the bootstrap over runs, and whether it is between the smallest and the largest size that were trained."
)
ABOUT_ANSWERS = (
    "Predicted differences have 95 % prediction intervals for a mean over as many pairs as the smallest rung has. The"
    " speed-up is how many times the size the baseline needs at the largest rung for the arm's loss, by its law. The"
    " change is the factor of the relative difference with each doubling of the size."
)
ABOUT_LAW = "L = E + A / size^α"
ABOUT_LAW_OF_TOKENS = "L = E + A / parameters^α + B / tokens^β"
ABOUT_LAWS = (
    "fitted by the Huber loss of log L (δ = 0.001) from a grid of starting points, with percentile intervals from a"
    " bootstrap over runs, of which those that branch off one another count as one. Scatter is the standard deviation"
    " of the losses about the law."
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
    return [f"{ladder.arm} against {ladder.baseline}{ladder.at}: {_outcome(ladder)}" for ladder in ladders]


def tables(ladders: Sequence[Ladder]) -> Iterator[Table]:
    """Yield the tables of answers, rungs and laws, whose first two columns name arms."""
    axis = AXES[ladders[0].axis] if len({ladder.axis for ladder in ladders}) == 1 else "size"
    at = ["at"] * any(ladder.at for ladder in ladders)
    answered = [(ladder, ladder.answer) for ladder in ladders if ladder.answer]
    if answered:
        ahead = [f"at {factor} ×" for factor in AHEAD]
        head = ["arm", "against", *at, "answer", "speed-up", "change", *ahead]
        rows = [[*_named(ladder, at), *_answered(found)] for ladder, found in answered]
        yield Table("Answers", ABOUT_ANSWERS, head, rows)
    head = ["arm", "against", *at, axis, "pairs", "difference", "interval", "fitted", "interval"]
    rows = [[*_named(ladder, at), *row] for ladder in ladders for row in _rungs(ladder)]
    about = ABOUT_RUNGS_OF_BUDGETS if any(any(ladder.bests) for ladder in ladders) else ABOUT_RUNGS
    yield Table("Rungs", about, head, rows)
    if rows := list(_bests(ladders)):
        head = ["arm", "", "FLOPs", "best size", "its interval", "tokens", "loss", "its interval", "within"]
        yield Table("Best sizes", ABOUT_BESTS, head, rows)
    yield from _laws(ladders)
    if rows := list(_checks(ladders)):
        head = ["arm", "against", axis, "pairs", "predicted", "interval", "measured", "interval", "inside"]
        yield Table("Check", ABOUT_CHECK, head, rows)
    lines = dict(line for ladder in ladders for line in zip((ladder.baseline, ladder.arm), ladder.rates))
    if rows := [[name, "", *_rates(line)] for name, line in lines.items() if line]:
        yield Table("Learning rates", ABOUT_RATES, ["arm", "", "tuned", "slope", "used"], rows)


def _named(ladder: Ladder, at: Sequence[str]) -> list[str]:
    """Return the first columns of a row: the arms, and where a table has several ladders of them, which one it is."""
    return [ladder.arm, ladder.baseline, *([ladder.series.label] if at else [])]


def data(ladders: Sequence[Ladder]) -> list[dict[str, Any]]:
    """Return the ladders as JSON."""
    return [
        {
            "arm": ladder.arm,
            "baseline": ladder.baseline,
            "axis": ladder.axis,
            "tokens": ladder.series.tokens,
            "tokens_per_param": ladder.series.tokens_per_param,
            "floor": ladder.floor,
            "rungs": [asdict(rung) for rung in ladder.rungs],
            "laws": [law and _law_data(law) for law in ladder.laws],
            "answer": ladder.answer and {**asdict(ladder.answer), "rungs": None},
            "problem": ladder.problem,
            "rates": [line and {**asdict(line), "sentence": line.sentence} for line in ladder.rates],
            "check": ladder.check and _check_data(ladder.check),
            "best_sizes": [[asdict(best) for best in bests] for bests in ladder.bests],
            "runs": [[asdict(point) for point in points] for points in ladder.points],
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
            "tokens": ladder.series.tokens,
            "tokens_per_param": ladder.series.tokens_per_param,
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


def _answered(found: Answer) -> list[str]:
    return [
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
            units.count(rung.size),
            str(len(rung.arm)),
            units.signed(measured.value),
            units.between(measured.interval),
            units.signed(fitted.value) if fitted else units.NONE,
            units.between(fitted.interval) if fitted else units.NONE,
        ]


def _bests(ladders: Sequence[Ladder]) -> Iterator[list[str]]:
    by_name = dict(own for ladder in ladders for own in zip((ladder.baseline, ladder.arm), ladder.bests))
    for name, bests in by_name.items():
        for best in bests:
            yield [
                name,
                "",
                units.count(best.flops),
                units.count(best.params.value),
                "{} to {}".format(*map(units.count, best.params.interval)),
                units.count(best.tokens),
                units.bits(best.loss.value),
                "{} to {}".format(*map(units.bits, best.loss.interval)),
                "yes" if best.is_inside else "no",
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


def _laws(ladders: Sequence[Ladder]) -> Iterator[Table]:
    """Yield the table of laws, if any could be fitted."""
    laws = dict(law for ladder in ladders for law in zip((ladder.baseline, ladder.arm), ladder.laws))
    fitted = {name: law for name, law in laws.items() if law}
    if not fitted:
        return
    of_tokens = any(law.is_of_tokens for law in fitted.values())
    terms = [("A", "α"), ("B", "β")][: 1 + of_tokens]
    head = [
        "arm",
        "",
        "E",
        *(column for a, e in terms for column in (a, e, "its interval")),
        "scatter",
        "problem",
    ]
    about = f"{ABOUT_LAW_OF_TOKENS if of_tokens else ABOUT_LAW}, {ABOUT_LAWS}"
    yield Table("Laws", about, head, [_law(name, law, len(terms)) for name, law in fitted.items()])


def _law(name: str, fit: Fit, terms: int) -> list[str]:
    law = fit.law
    shown = [
        text
        for amount, exponent, interval in zip(law.amounts, law.exponents, fit.exponent_intervals)
        for text in (f"{amount:.4g}", f"{exponent:.3f}", "{:.3f} to {:.3f}".format(*interval))
    ]
    missing = [units.NONE] * (3 * terms - len(shown))
    scatter = f"{100 * float(np.sqrt(np.mean(fit.residuals**2))):.2g} %"
    return [name, "", units.bits(law.floor), *shown, *missing, scatter, fit.problem or ""]


def _law_data(fit: Fit) -> dict[str, Any]:
    return {
        **asdict(fit.law),
        "scales": ["params", "tokens"] if fit.is_of_tokens else ["size"],
        "exponent_interval": fit.exponent_intervals[0],
        "exponent_intervals": fit.exponent_intervals,
        "residuals": fit.residuals.tolist(),
        "problem": fit.problem,
    }


def _factor(estimate: Estimate) -> str:
    if units.finite(estimate.value) is None:
        return units.NONE
    low, high = estimate.interval
    return f"{estimate.value:.3g} × ({low:.3g} to {high:.3g})"


def _signed(estimate: Estimate) -> str:
    return f"{units.signed(estimate.value)} ({units.between(estimate.interval)})"
