"""Grades of the arms of a comparison: what their runs write, graded, and judged with the words of a verdict.

With enough seeds for so many tests, every paired run is graded, and the differences of the pairs are tested as those of
the losses are. With fewer, no difference could be claimed, so one run of each arm is graded, and the differences of
beginnings are tested: that is about two trained models, and not about the arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.estimates import LEVEL, UNKNOWN, Estimate
from minllm.grading.grader import Grader
from minllm.grading.grades import Calibration, Duel, Grades, Measure
from minllm.grading.intervals import RANGES, by_group, constant_interval, estimate, linearised
from minllm.grading.samples import Written, write
from minllm.runs.find import read_run
from minllm.schema.checking import validate
from minllm.study.arms import measured
from minllm.study.comparison import Comparison
from minllm.study.grade_contests import Basis, Differences, GradeContest, judged
from minllm.study.intervals import mean_of
from minllm.study.reading import reason
from minllm.study.selection import TrainedRun
from minllm.study.statistics import least_pairs

SMALLEST_MARGIN = 1e-9
"""The margin of a measure whose baseline is 0, of which there is no share."""


@dataclass(frozen=True)
class ArmGrades:
    """The grades of an arm's runs.

    runs: the grades by seed
    values: of each measure that has one, over its seeds or over the beginnings of its only graded run
    why_not: why it has no grades, or not of all its runs; None if it has all
    """

    arm: str
    runs: Mapping[int, Grades]
    values: Mapping[str, Estimate]
    why_not: str | None = None

    @property
    def shown(self) -> Grades | None:
        """The grades of its first graded run, whose samples are shown: it isn't chosen by its result."""
        return next(iter(self.runs.values()), None)


@dataclass(frozen=True)
class Grading:
    """The grades of several arms, or of a single run.

    grader: the name of the grader's class
    settings: how the texts were graded
    basis: what is resampled, and what differences are paired over
    measures: in the order in which they are shown
    arms: the baseline first
    seeds_needed: the fewest seeds of each arm with which differences are paired over seeds
    contests: a test of each judged measure in each contest of the comparison
    duels: what a judge says of pairs of samples
    calibration: whether the judge can be believed, if it was tested
    """

    grader: str
    settings: Mapping[str, Any]
    basis: Basis
    measures: Sequence[Measure]
    arms: Sequence[ArmGrades]
    seeds_needed: int
    contests: Sequence[GradeContest] = ()
    duels: Sequence[Duel] = ()
    calibration: Calibration | None = None


def grade_run(cfg: DictConfig, run: Path, grader: Grader, device: torch.device) -> Grading:
    """Grade what one run writes.

    Args:
        cfg: the configuration of the run, whose data may have moved.

    Raises:
        UserError: its model can't generate, or its texts can't be graded.
    """
    written = write(cfg, run, run.name, grader, device)
    calibration = grader.calibrate([written])
    grades = grader.grade(written)
    arm = ArmGrades(run.name, {cfg.seed: grades}, values_over_beginnings(grades, grader))
    return graded(grader, "beginnings", 0, [arm], calibration=calibration)


def grade_arms(
    comparison: Comparison, grader: Grader, device: torch.device, extensions: Sequence[str]
) -> Grading:
    """Grade the runs of a comparison. What can't be graded has a sentence in place of its grades."""
    needed = seeds_needed(max(1, len(comparison.contests)), grader.measures)
    basis, seeds = planned(comparison, needed)
    by_name = {arm.name: arm for arm in comparison.arms}
    texts: dict[str, dict[int, Written]] = {}
    failed: dict[str, str] = {}
    for name, own in seeds.items():
        texts[name] = {}
        for seed in own:
            try:
                run = by_name[name].runs[seed]
                cfg = configuration(run, extensions)
                texts[name][seed] = write(cfg, run.folder, f"{name}, seed {seed}", grader, device)
            # including errors of outside code: the comparison is valid without its texts
            except Exception as error:
                failed[name] = f"Seed {seed}: {reason(error)}"
                break
    try:
        calibration = grader.calibrate([text for own in texts.values() for text in own.values()])
        grades = {
            name: {seed: grader.grade(text) for seed, text in own.items()} for name, own in texts.items()
        }
        duels = list(_duels(comparison, grader, grades))
    except UserError as error:  # such as a judge that can't be reached: the losses are compared all the same
        return graded(grader, basis, needed, [ArmGrades(name, {}, {}, str(error)) for name in seeds])
    over = values_over_seeds if basis == "seeds" else values_of_first
    arms = [ArmGrades(name, own, over(own, grader), failed.get(name)) for name, own in grades.items()]
    contests = judged(list(_differences(comparison, grader, grades, basis)), basis)
    return graded(grader, basis, needed, arms, contests, duels, calibration)


def graded(
    grader: Grader,
    basis: Basis,
    needed: int,
    arms: Sequence[ArmGrades],
    contests: Sequence[GradeContest] = (),
    duels: Sequence[Duel] = (),
    calibration: Calibration | None = None,
) -> Grading:
    known = {measure for arm in arms for grades in arm.runs.values() for measure in grades.values}
    return Grading(
        grader=type(grader).__name__,
        settings=grader.settings(),
        basis=basis,
        measures=[measure for measure in grader.measures if measure in known],
        arms=arms,
        seeds_needed=needed,
        contests=contests,
        duels=duels,
        calibration=calibration,
    )


def configuration(run: TrainedRun, extensions: Sequence[str]) -> DictConfig:
    """Return a run's configuration to build from. UserError if it isn't valid, or needs code that isn't trusted."""
    cfg = read_run(run.folder, extensions)
    validate(cfg)
    return cfg


def planned(comparison: Comparison, needed: int) -> tuple[Basis, dict[str, list[int]]]:
    """Return what differences are paired over, and the seeds of each arm's runs that are graded for it."""
    pairs = [
        (contest.arm, contest.baseline)
        for contest in comparison.contests
        if contest.arm.runs and contest.baseline.runs
    ]
    shared = [sorted(set(arm.runs) & set(baseline.runs)) for arm, baseline in pairs]
    arms = measured(comparison.arms)
    if shared and min(map(len, shared)) >= needed:
        seeds: dict[str, set[int]] = {arm.name: set() for arm in arms}
        for pair, own in zip(pairs, shared):
            for arm in pair:
                seeds[arm.name].update(own)
        return "seeds", {name: sorted(own) for name, own in seeds.items() if own}
    first = comparison.shared_seed
    return "beginnings", {arm.name: [first if first in arm.runs else next(iter(arm.runs))] for arm in arms}


def seeds_needed(contests: int, measures: Sequence[Measure]) -> int:
    """Return the fewest seeds with which the tests of all judged measures together can claim a difference."""
    return least_pairs(LEVEL, (), contests * sum(measure.better != "neither" for measure in measures))


# ---- values --------------------------------------------------------------------------------------


def values_over_beginnings(grades: Grades, grader: Grader) -> dict[str, Estimate]:
    """Return the values of one run's grades, with intervals over its groups of samples."""
    groups = groups_of(grades)
    known = {
        measure.name: estimate(measure, grades.values[measure], groups)
        for measure in grader.measures
        if measure in grades.values
    }
    return {name: value for name, value in known.items() if value is not None}


def values_of_first(runs: Mapping[int, Grades], grader: Grader) -> dict[str, Estimate]:
    return values_over_beginnings(next(iter(runs.values())), grader) if runs else {}


def values_over_seeds(runs: Mapping[int, Grades], grader: Grader) -> dict[str, Estimate]:
    """Return the means over an arm's runs, with Student's intervals."""
    result = {}
    for measure in grader.measures:
        values = [ratio(grades, measure) for grades in runs.values()]
        known = [value for value in values if value is not None]
        if not known:
            continue
        mean = mean_of(known)
        low, high = mean.interval
        if max(known) == min(known):
            groups = sum(groups_with(measure, grades) for grades in runs.values())
            low, high = constant_interval(measure, mean.value, groups)
        least, most = RANGES.get(measure.unit, UNKNOWN)
        result[measure.name] = Estimate(mean.value, (max(low, least), min(high, most)))
    return result


def ratio(grades: Grades, measure: Measure) -> float | None:
    """Return the value of a run: the ratio of its sums. None if no sample has a value."""
    values = grades.values.get(measure)
    total = math.fsum(values.counts) if values else 0.0
    if values is None or not total:
        return None
    return math.fsum(amount for amount, count in zip(values.amounts, values.counts) if count) / total


def groups_of(grades: Grades) -> list[int]:
    return [sample.group for sample in grades.written.samples]


def groups_with(measure: Measure, grades: Grades) -> int:
    """Return how many groups of a run's samples have a value of a measure."""
    return by_group(grades.values[measure], groups_of(grades)).groups if measure in grades.values else 0


# ---- contests ------------------------------------------------------------------------------------


def _differences(
    comparison: Comparison,
    grader: Grader,
    grades: Mapping[str, Mapping[int, Grades]],
    basis: Basis,
) -> Iterator[Differences]:
    """Yield the differences of each judged measure in each contest that has any."""
    for contest in comparison.contests:
        own, others = grades.get(contest.arm.name, {}), grades.get(contest.baseline.name, {})
        pairs = [(own[seed], others[seed]) for seed in own if seed in others]
        for measure in grader.measures:
            if measure.better == "neither" or not pairs:
                continue
            known = [
                pair for pair in pairs if all(ratio(grades_of, measure) is not None for grades_of in pair)
            ]
            if not known:
                continue
            room = None
            if basis == "seeds":
                values = [ratio(arm, measure) - ratio(baseline, measure) for arm, baseline in known]  # type: ignore[operator]
            else:
                (arm, baseline) = known[0]
                values = linearised(arm.values[measure], baseline.values[measure], groups_of(arm)).tolist()
                room = room_of(measure, arm, baseline)
            bases = [ratio(baseline, measure) or 0.0 for _, baseline in known]
            scale = measure.span or abs(math.fsum(bases) / len(bases))
            yield Differences(
                contest.arm.name,
                contest.baseline.name,
                measure,
                values,
                max(grader.margin * scale, SMALLEST_MARGIN),
                sum(min(groups_with(measure, grades_of) for grades_of in pair) for pair in known),
                room,
            )


def room_of(measure: Measure, arm: Grades, baseline: Grades) -> tuple[float, float] | None:
    """Return the differences that the intervals of two runs allow; None if all of their groups have a value."""
    groups, both = groups_of(arm), (arm, baseline)
    if all(groups_with(measure, grades) == len(set(groups)) for grades in both):
        return None
    (low, high), (least, most) = (
        known.interval if (known := estimate(measure, grades.values[measure], groups)) else UNKNOWN
        for grades in both
    )
    return low - most, high - least


def _duels(
    comparison: Comparison, grader: Grader, grades: Mapping[str, Mapping[int, Grades]]
) -> Iterator[Duel]:
    """Yield what a judge says of pairs of samples: of the first seed that both runs of a contest have."""
    for contest in comparison.contests:
        own, others = grades.get(contest.arm.name, {}), grades.get(contest.baseline.name, {})
        seed = next((seed for seed in own if seed in others), None)
        if seed is not None and (duel := grader.compare(own[seed].written, others[seed].written)):
            yield replace(duel, names=(contest.arm.name, contest.baseline.name))
