"""The measures besides the mean difference, as tables that the HTML and the Markdown report share, and as sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from minllm.estimates import Estimate
from minllm.page import units
from minllm.study import bounds
from minllm.study.comparison import Comparison
from minllm.study.documents import ByDocument
from minllm.study.intervals import LEAST_RESAMPLED
from minllm.study.measures import Measures
from minllm.study.metric import BITS
from minllm.study.speedup import SpeedUp
from minllm.study.stability import FAR, NOTICED, WINDOW, Indicator
from minllm.study.verdict import Word

HEADING = "Other measures"
ABOUT = (
    "These don't change a verdict. All intervals are at 95 %, each on its own: they aren't corrected for the number of"
    " contests, measures or looks. A dash means that a value is unknown."
)
ABOUT_BOUNDS = (
    " They compare the values as recorded, although those that are upper bounds may be truly lower."
)
ABOUT_SPEED = (
    "A speed-up is a ratio of tokens, on the mean curves over the paired seeds, interpolated in the logarithm of"
    " tokens: above 1, the arm is faster. “To the arm's loss” divides the tokens that the baseline needs for the arm's"
    " final loss by the arm's tokens; “to the baseline's loss” divides the baseline's tokens by those that the arm"
    " needs for the baseline's final loss. Where a curve never reaches the loss, the value is a bound (at least, at"
    " most), and an interval without an upper end goes beyond what was trained. Intervals are from a bootstrap over at"
    f" least {LEAST_RESAMPLED} pairs. “Extrapolated” continues the baseline's curve by a power law of tokens above the"
    " corpus's known entropy, fitted to the second half of the curve; that is an assumption, which a learning rate that"
    " decays violates."
)
ABOUT_EQUAL = (
    "Bits per byte, arm minus baseline, at the largest budget that every run of both arms has spent, with Student's"
    " interval over the pairs. Where an arm had spent only a part of its budget by then, its percentage is given: if"
    " its learning rate falls until the end of training, such a point is worse than a run planned to end there, so the"
    " comparison is unfavourable to that arm. Seconds include evaluations, and depend on the machine and its load."
)
ABOUT_SEEDS = (
    "Seeds won are pairs in which the arm has the lower loss, with the exact binomial interval (Clopper–Pearson) of"
    " their share. The probability of superiority is that of a run of the arm having a lower loss than a run of the"
    " baseline with any seed, with Newcombe's interval and the Mann–Whitney test; both treat the arms as independent. A"
    " run that diverged has the worst loss."
)
ABOUT_STABILITY = (
    "Arm against baseline. Spread is the standard deviation over the paired seeds, with McCulloch's rank test of equal"
    " variances in pairs. Spikes are jumps of the training loss, per run: values above the median of the"
    f" {WINDOW} before by {FAR:g} robust standard deviations and {100 * NOTICED:g} %, with a sign test over the pairs."
    " “Diverged” is the share of an arm's runs that diverged, with Fisher's exact test. An arm is less"
    " stable if one of the three p-values, times three, is at most 0.05."
)
ABOUT_TEXTS = (
    "Bits per byte, arm minus baseline. The interval over seeds holds for these validation documents only; the one over"
    " documents for these seeds only; the one over both for other seeds and other documents of the same kind. It is"
    " from the variances between seeds, between documents and of the rest (two-way analysis of variance), and assumes"
    " that the documents are a random sample."
)


@dataclass(frozen=True)
class Table:
    """A table with a row for each contest. The first two cells of a row are the names of the arm and the baseline."""

    title: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def about(comparison: Comparison) -> str:
    """Return what holds for all measures."""
    of_losses = f" They are of {BITS.unit}, although accuracies decide." * comparison.metric.is_share
    return ABOUT + of_losses + ABOUT_BOUNDS * bool(bounds.about(comparison.arms))


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables of all measures."""
    parts: list[tuple[str, str, Sequence[str], Callable[[Measures], Sequence[str]]]] = [
        ("Speed-up", ABOUT_SPEED, ("to the arm's loss", "to the baseline's loss", "extrapolated"), _speed),
        ("Equal budgets", ABOUT_EQUAL, ("at equal tokens", "at equal FLOPs", "at equal seconds"), _equal),
        ("Seeds", ABOUT_SEEDS, ("seeds won", "share won", "probability of superiority", "p"), _seeds),
        (
            "Stability",
            ABOUT_STABILITY,
            ("spread", "p", "spikes", "p", "diverged", "p", "less stable"),
            _stability,
        ),
        (
            "Validation documents",
            ABOUT_TEXTS,
            ("documents", "won", "over seeds", "over documents", "over both", "conclusion"),
            _texts,
        ),
    ]
    return [
        Table(
            title,
            about,
            ["arm", "against", *head],
            [[measures.arm, measures.baseline, *of(measures)] for measures in comparison.measures],
        )
        for title, about, head, of in parts
    ]


def in_a_terminal(measures: Measures) -> list[str]:
    """Return at most two sentences: how much faster the arm is, and what limits or qualifies the difference."""
    if measures.wins is None:
        return []
    parts = [f"{measures.wins.won} of {measures.wins.seeds} seeds won"]
    if measures.speed:
        parts.insert(0, f"speed-up {speed_up(measures.speed.best_known)} in tokens")
    if measures.superiority:
        parts.append(f"probability of superiority {_interval(measures.superiority.probability, _share)}")
    speed = f"{measures.arm} against {measures.baseline}: {', '.join(parts)}."
    return [line for line in (speed, " ".join(qualified(measures))) if line]


def qualified(measures: Measures) -> list[str]:
    """Return what qualifies a difference: another text, or a lack of stability."""
    sentences = []
    if known := measures.by_document:
        interval = _interval(known.over_both, units.signed)
        sentences.append(
            f"{conclusion(known, measures.provable).capitalize()}: {interval} over seeds and {known.documents:,}"
            " documents."
        )
    if measures.stability.less_stable is not None:
        sentences.append(
            f"{measures.stability.less_stable} is less stable (p {units.p_value(measures.stability.p)} of three tests)."
        )
    return sentences


def conclusion(by_document: ByDocument, provable: Collection[Word]) -> str:
    """Return how far the difference generalises, if its direction is one that the values can prove."""
    if not math.isfinite(by_document.over_seeds.interval[0]) or not math.isfinite(
        by_document.over_both.interval[0]
    ):
        return "too few seeds or documents"
    if by_document.over_seeds.excludes_zero and _side(by_document) not in provable:
        return "no difference proved, because a value is an upper bound"
    if by_document.over_both.excludes_zero:
        return f"{_side(by_document)} on such texts"
    if by_document.over_seeds.excludes_zero:
        return f"{_side(by_document)} on this text, not shown for other texts"
    return "no difference shown on this text"


def speed_up(ratio: SpeedUp | None) -> str:
    """Format a speed-up with its interval."""
    if ratio is None:
        return units.NONE
    value = f"{ratio.bound} {ratio.value:.3g}".strip()
    low, high = ratio.interval
    if (low, high) == (0.0, math.inf):
        return value
    if low > 0 and math.isfinite(high):
        return f"{value} ({low:.3g} to {high:.3g})"
    end = f"at most {high:.3g}" if math.isfinite(high) else f"at least {low:.3g}"
    return value if value == end else f"{value} ({end})"


def _speed(measures: Measures) -> list[str]:
    if measures.speed is None:
        return [units.NONE] * 3
    extrapolated = speed_up(measures.speed.extrapolated)
    if measures.speed.exponent is not None:
        extrapolated += f", exponent {measures.speed.exponent:.2g}"
    return [speed_up(measures.speed.to_arm), speed_up(measures.speed.to_baseline), extrapolated]


def _equal(measures: Measures) -> list[str]:
    cells = []
    for equal in measures.at_equal:
        amount = units.duration(equal.budget) if equal.axis == "seconds" else units.count(equal.budget)
        shares = (("arm", equal.of_arm), ("baseline", equal.of_baseline))
        parts = [f"{name} at {_percent(share)}" for name, share in shares if share < 0.995]
        if equal.difference is None:
            cells.append(f"{units.NONE} (no evaluation by {amount})")
        else:
            cells.append(
                f"{_interval(equal.difference, units.signed)} at {amount}{''.join(f', {part}' for part in parts)}"
            )
    return cells or [units.NONE] * 3


def _seeds(measures: Measures) -> list[str]:
    if measures.wins is None or measures.superiority is None:
        return [units.NONE] * 4
    tied = f", {measures.wins.tied} tied" if measures.wins.tied else ""
    return [
        f"{measures.wins.won} of {measures.wins.seeds}{tied}",
        _interval(measures.wins.share, _share),
        _interval(measures.superiority.probability, _share),
        units.p_value(measures.superiority.p),
    ]


def _stability(measures: Measures) -> list[str]:
    known = measures.stability
    return [
        *_indicator(known.spread, units.bits),
        *_indicator(known.spikes, "{:.2g}".format),
        *_indicator(known.divergence, _percent),
        known.less_stable or "neither",
    ]


def _indicator(indicator: Indicator, unit: Callable[[float], str]) -> list[str]:
    if indicator.arm is None or indicator.baseline is None:
        return [units.NONE] * 2
    return [
        f"{unit(indicator.arm)} against {unit(indicator.baseline)}",
        units.NONE if indicator.p is None else units.p_value(indicator.p),
    ]


def _texts(measures: Measures) -> list[str]:
    by_document = measures.by_document
    if by_document is None:
        return [*[units.NONE] * 5, measures.no_documents]
    intervals = (by_document.over_seeds, by_document.over_documents, by_document.over_both)
    return [
        units.count(by_document.documents),
        _percent(by_document.won),
        *(_interval(each, units.signed) for each in intervals),
        conclusion(by_document, measures.provable),
    ]


def _side(by_document: ByDocument) -> Word:
    return "better" if by_document.over_seeds.value < 0 else "worse"


def _interval(estimate: Estimate, unit: Callable[[float], str]) -> str:
    if not all(map(math.isfinite, estimate.interval)):
        return unit(estimate.value)
    return f"{unit(estimate.value)} ({unit(estimate.interval[0])} to {unit(estimate.interval[1])})"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _share(value: float) -> str:
    return f"{value:.2f}"
