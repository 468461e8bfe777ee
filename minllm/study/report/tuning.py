"""Tuning effort in the report: tuning curves, and whether a difference survives more trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minllm.page import units
from minllm.study import bounds
from minllm.study.comparison import Comparison, Contest
from minllm.study.metric import Metric
from minllm.study.tuning import Tuning
from minllm.study.tuning_curves import CONFIDENCE, TuningCurve, separate_at, tuning_curve

UNPROVED = ", but a value is an upper bound, so this proves nothing"


@dataclass(frozen=True)
class Effort:
    """Whether the tuning curves of two arms are apart.

    separate_at: the numbers of trials after which their bands don't overlap
    """

    arm: str
    baseline: str
    separate_at: Sequence[int]
    sentence: str


def curves_of(comparison: Comparison) -> dict[str, TuningCurve]:
    """Return the tuning curve of each arm that was tuned, by name."""
    return {name: tuning_curve(tuning.planned_losses) for name, tuning in comparison.tuning.items()}


def best(metric: Metric) -> str:
    """Return what a tuning curve shows."""
    return f"lowest share {metric.unit}" if metric.is_share else f"best {metric.unit}"


def about_curves(comparison: Comparison) -> str:
    return (
        f"The {best(comparison.metric)} (median) to expect after this many trials of tuning, with the first tuning"
        " seed, if the trials that every arm tries are taken as random draws. Bands hold at"
        f" {100 * CONFIDENCE:g} % for each arm, and so at 95 % for two arms together, for all numbers of trials at"
        " once. A trial that diverged counts as the worst."
    )


def efforts(comparison: Comparison) -> list[Effort]:
    """Return for each contest between tuned arms whether their tuning curves are apart; not of a ladder's rungs."""
    if comparison.families:
        return []
    curves = curves_of(comparison)
    return [
        _effort(contest, curves[contest.arm.name], curves[contest.baseline.name])
        for contest in comparison.contests
        if {contest.arm.name, contest.baseline.name}
        <= {name for name, curve in curves.items() if len(curve.trials) > 1}
    ]


def curve_rows(comparison: Comparison) -> list[list[str]]:
    """Return the rows of a table: numbers of trials, and the tuning curve of each arm at them; none for one trial."""
    curves = list(curves_of(comparison).values())
    known = {arm.name: arm.bound for arm in comparison.arms}
    of_bounds = [known.get(name) for name in comparison.tuning]
    trials = max((len(curve.trials) for curve in curves), default=0)
    if trials < 2:
        return []
    shown = [*(2**power for power in range(trials.bit_length()) if 2**power < trials), trials]
    return [
        [str(k), *(units.marked(_at(curve, k), bound) for curve, bound in zip(curves, of_bounds))]
        for k in shown
    ]


def tuning_data(tuning: Tuning, metric: Metric) -> dict[str, Any]:
    """Return an arm's tuning for report.json."""
    return {
        "chosen": tuning.chosen,
        "how": tuning.how,
        "settled": not tuning.unsettled,
        "unsettled": tuning.unsettled,
        "runs": tuning.runs,
        "most_runs": tuning.most_runs,
        "tried": [
            {
                "values": tried.values,
                "planned": tried.planned,
                metric.name: recorded(tried.mean, metric),
                f"{metric.name}_by_seed": {
                    seed: recorded(loss, metric) for seed, loss in tried.losses.items()
                },
            }
            for tried in tuning.tried
        ],
        "curve": {"confidence": CONFIDENCE, **asdict(tuning_curve(tuning.planned_losses))},
    }


def recorded(loss: float | None, metric: Metric) -> float | None:
    """Return the value as runs record it: of an accuracy, the accuracy."""
    return loss if loss is None or not metric.is_share else 1.0 - loss


def _effort(contest: Contest, arm: TuningCurve, baseline: TuningCurve) -> Effort:
    apart = separate_at(arm, baseline)
    names = f"{contest.arm.name} and {contest.baseline.name}"
    trials = min(len(arm.trials), len(baseline.trials))
    if apart:
        lower = contest.arm if arm.high[apart[0] - 1] < baseline.low[apart[0] - 1] else contest.baseline
        word = "better" if lower is contest.arm else "worse"
        proved = word in bounds.provable(contest.arm, contest.baseline)
        means = ": with that much effort the difference survives tuning" if proved else UNPROVED
        sentence = (
            f"The tuning curves of {names} are apart, with {lower.name} lower, after {_counted(apart)} of tuning"
            f"{means}."
        )
        sentence += " With more trials their bands overlap." * (apart[-1] < trials)
    else:
        sentence = (
            f"The bands of the tuning curves of {names} overlap at every number of trials, so {trials} trials don't"
            " show whether a difference survives more tuning. Bands narrow with more trials, for example"
            " search.tune=[optim.lr,optim.weight_decay] search.trials=48."
        )
    return Effort(contest.arm.name, contest.baseline.name, apart, sentence)


def _counted(trials: Sequence[int]) -> str:
    listed = ", ".join(map(str, trials[:-1]))
    return f"{listed}{' and ' if listed else ''}{trials[-1]} trial{'s' * (trials[-1] > 1)}"


def _at(curve: TuningCurve, k: int) -> str:
    if k > len(curve.trials):
        return units.NONE
    best, low, high = (units.bits(values[k - 1]) for values in (curve.best, curve.low, curve.high))
    return f"{best} ({low} to {high})"
