"""The comparison of a ladder's arms at its rungs, and the check of its prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minllm.errors import UserError, printable
from minllm.estimates import Estimate
from minllm.runs.folder import to_json, write_text
from minllm.study import recorded
from minllm.study.arms import Arm, floor_of
from minllm.study.comparison import Comparison, of_arms, with_tuning
from minllm.study.divergence import diverged_seeds
from minllm.study.report.scaling import check_sentence
from minllm.study.scaling.answer import Prediction, predicted
from minllm.study.scaling.check import Check
from minllm.study.scaling.ladders import Axis, Family, Ladder, rung_of
from minllm.study.scaling.rates import RateLine
from minllm.study.selection import LeftOut
from minllm.study.tuning import RATE, Tuning
from minllm.verdict.comparing import arm_in
from minllm.verdict.ladder_rungs import RungPlan
from minllm.verdict.tuning import CONTINUE, NothingToCompare

if TYPE_CHECKING:
    from minllm.verdict.ladder import LadderSearch

PREDICTION = "prediction.json"


def compare_rungs(
    search: LadderSearch, tunings: Mapping[tuple[str, int], Tuning], rates: Mapping[str, RateLine]
) -> Comparison:
    """Compare the arms at every rung at which all of them have runs.

    Raises:
        NothingToCompare: there is no such rung.
        UserError: all runs of an arm failed at a rung, other than by divergence.
    """
    families: list[Family] = []
    left_out: list[LeftOut] = []
    by_rung: dict[str, dict[str, Arm]] = {}
    for plan in (plan for rung in search.rungs if not rung.is_check for plan in rung.plans):
        if of_rung := arms_at(search, plan):
            by_rung[plan.key] = {name: arm for name, (arm, _) in of_rung.items()}
            left_out += [run for _, others in of_rung.values() for run in others]
    if not any(arm.runs for arms in by_rung.values() for arm in arms.values()):
        reason = "training diverged with every seed" if by_rung else "time ran out before any rung had a pair"
        raise NothingToCompare(reason, "" if by_rung else CONTINUE)
    for name in search.arms:
        own = [arms[name] for arms in by_rung.values() if arms[name].runs]
        families.append(Family(search.display_name(name), own, rates.get(name)))
    # an arm that diverged with every seed of a rung is compared, too
    arms = [arms[name] for name in search.arms for arms in by_rung.values()]
    comparison = of_arms(
        arms,
        left_out,
        margin=search.protocol.margin,
        looks=[search.settings.pairs],
        families=[family for family in families if family.arms],
    )
    tuned = {
        by_rung[str(number)][name].name: as_used(
            tuning, rates[name], search.rungs[number - 1].arms[name].params
        )
        for (name, number), tuning in tunings.items()
        if str(number) in by_rung
    }
    return replace(with_tuning(comparison, tuned), commands=[search.command()], kept_margin=True)


def arms_at(search: LadderSearch, rung: RungPlan) -> dict[str, tuple[Arm, list[LeftOut]]]:
    """Return the arms at a rung, with their runs that can't be compared; none if an arm has no run yet."""
    found = {}
    for name in search.arms:
        folder = search.folder / f"seeds-{name}-{rung.key}"
        shown = f"{search.display_name(name)} ({rung.place})"
        try:
            found[name] = arm_in(folder, name, shown, range(search.settings.pairs), search)
        except NothingToCompare:
            return {}
    return found


def as_used(tuning: Tuning, line: RateLine, params: float) -> Tuning:
    """Return the tuning of an arm at a rung, with the rate that its pairs were trained with."""
    own = tuning.chosen[RATE]
    how = f"{line.sentence}; this tuning alone chose {own:.3g}, {tuning.how}"
    return replace(tuning, chosen={RATE: line.at(params)}, how=how)


# ---- the check -----------------------------------------------------------------------------------


def checked(search: LadderSearch, comparison: Comparison, train: Callable[[RungPlan], bool]) -> Comparison:
    """Predict the differences at the rung above the ladder, train it, and return the comparison with the outcome.

    Args:
        train: trains the pairs of a rung, and returns whether all of them are done.
    """
    rung = search.rungs[-1]
    floor = floor_of(comparison.arms)
    of_most_tokens = {ladder.arm: ladder for ladder in comparison.ladders}  # the last of each arm
    predictions = {
        arm: prediction_for(ladder, rung, search, floor)
        for arm, ladder in of_most_tokens.items()
        if ladder.answer
    }
    if not predictions:
        print("Without an answer there is no prediction to check.", flush=True)
        return comparison
    predictions = kept(search, predictions)
    for arm, prediction in predictions.items():
        low, high = prediction.difference.interval
        print(
            printable(
                f"{arm}: at {rung.label} parameters, a difference of {low:+.4f} to {high:+.4f} bits per byte is"
                f" predicted; see {search.folder / PREDICTION}"
            ),
            flush=True,
        )
    is_done = train(rung)
    checks = scored(search, rung, predictions)
    if not is_done:
        print(f"Time ran out before the check had {search.settings.pairs} pairs. {CONTINUE}", flush=True)
        waiting = f"It has fewer than {search.settings.pairs} pairs yet."
        checks = {arm: replace(check, problem=check.problem or waiting) for arm, check in checks.items()}
    for arm, check in checks.items():
        print(printable(f"{arm}: {check_sentence(check)}"), flush=True)
    return replace(comparison, checks=checks)


def prediction_for(ladder: Ladder, rung: RungPlan, search: LadderSearch, floor: float | None) -> Prediction:
    """Return the prediction of a ladder for the rung above it."""
    shown = {search.display_name(name): name for name in search.arms}
    both = [rung.arms[shown[name]] for name in (ladder.baseline, ladder.arm)]
    axis: Axis = ladder.axis
    size = float(np.mean([training.params if axis == "params" else training.flops for training in both]))
    return predicted(ladder.rungs, size, search.settings.pairs, floor=floor)


def kept(search: LadderSearch, predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """Write the predictions unless they have been written before, and return what is written.

    Raises:
        UserError: the file is damaged, or lacks a prediction.
    """
    if not recorded.is_there(search.folder, PREDICTION):
        content = {arm: asdict(prediction) for arm, prediction in predictions.items()}
        write_text(search.folder / PREDICTION, to_json({"predictions": content}))
    try:
        saved = recorded.read_object(search.folder, PREDICTION)
        recorded.check(saved, {"predictions": dict[str, dict[str, Any]]}, PREDICTION)
        return {arm: read_prediction(saved["predictions"].get(arm, {})) for arm in predictions}
    except recorded.Damaged as error:
        raise UserError(
            f"In {search.folder}: {error} A prediction made after its measurement proves nothing: restore the file, or"
            " start another ladder: sweep.name=<name>."
        ) from error


def read_prediction(content: Mapping[str, Any]) -> Prediction:
    kinds = {"size": float, "factor": float, "pairs": int, "difference": dict[str, Any]}
    recorded.check(content, kinds, PREDICTION)
    recorded.check(
        content["difference"], {"value": float, "interval": list[float]}, PREDICTION, "difference."
    )
    difference = content["difference"]
    low, high = difference["interval"]
    return Prediction(
        content["size"], content["factor"], content["pairs"], Estimate(difference["value"], (low, high))
    )


def scored(search: LadderSearch, rung: RungPlan, predictions: Mapping[str, Prediction]) -> dict[str, Check]:
    """Return each prediction with the differences that were measured."""
    of_rung = arms_at(search, rung)
    if not of_rung:
        return {arm: Check(prediction, []) for arm, prediction in predictions.items()}
    baseline, *others = search.arms
    checks = {}
    for name in others:
        if (prediction := predictions.get(search.display_name(name))) is None:
            continue
        both = [of_rung[side] for side in (baseline, name)]
        unstable = [arm.name for arm, left_out in both if diverged_seeds(arm, left_out)]
        problem = f"Training diverged with some seeds ({', '.join(unstable)})." if unstable else None
        pair = [arm for arm, _ in both]
        differences: Sequence[float] = (
            rung_of(*pair, "params").differences if all(a.runs for a in pair) else []
        )
        checks[search.display_name(name)] = Check(prediction, differences, problem)
    return checks
