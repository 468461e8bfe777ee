"""The comparison of a verdict's first pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.study.arms import Arm, arms_of
from minllm.study.comparison import ALL, Comparison, of_arms, with_tuning
from minllm.study.contest import Contest, Noise
from minllm.study.selection import LeftOut, Selection, find, runs_in
from minllm.study.statistics import verdicts
from minllm.study.tuning import Tuning
from minllm.verdict.entry import contests_of, with_standings
from minllm.verdict.tuning import CONTINUE, NothingToCompare

if TYPE_CHECKING:
    from pathlib import Path

    from minllm.verdict.arms_search import ArmsSearch
    from minllm.verdict.sequential import VerdictSearch


def compare_pairs(search: VerdictSearch, tuning: Mapping[str, Tuning], pairs: int) -> Comparison:
    """Compare the first `pairs` pairs.

    Raises:
        NothingToCompare: an arm has no run yet, or every arm diverged with every seed.
        UserError: all runs of an arm failed in another way.
    """
    arms: list[Arm] = []
    left_out: list[LeftOut] = []
    for name in search.arms:
        arm, others = arm_of(search, name, pairs)
        arms.append(arm)
        left_out += others
    if not any(arm.runs for arm in arms):
        raise NothingToCompare(
            "training diverged with every seed of every arm", f"The first run is {left_out[0].folder}."
        )
    protocol = search.protocol
    baseline = protocol.baseline
    comparison = of_arms(
        arms,
        left_out,
        baseline=search.display_name(baseline) if baseline in search.arms else baseline,
        margin=protocol.margin,
        aa=protocol.aa,
        looks=protocol.looks,
        metric=search.measure,
    )
    tuned = {search.display_name(name): arm_tuning for name, arm_tuning in tuning.items()}
    comparison = replace(with_tuning(comparison, tuned), commands=[search.command()], kept_margin=True)
    return with_standings(comparison, search.entry, every=baseline == ALL)


def without_runs(search: VerdictSearch, end: NothingToCompare) -> Comparison:
    """Return a comparison in which every contest is inconclusive, because no arm can be compared yet."""
    protocol = search.protocol
    arms = {name: Arm(search.display_name(name), {}) for name in search.arms}
    contests = contests_of(list(arms), protocol.baseline)
    (verdict,) = verdicts([[]], margin=protocol.margin, unit=search.measure.unit)
    verdict = replace(verdict, why=end.advice, settling="")
    comparison = Comparison(
        arms=list(arms.values()),
        contests=[
            Contest(arms[arm], arms[baseline], {}, verdict, reason=end.reason) for arm, baseline in contests
        ],
        margin=protocol.margin,
        noise=[Noise(arm, verdict, None) for arm in arms.values()] if protocol.aa else [],
        facts=[],
        left_out=[],
        metric=search.measure,
    )
    return with_standings(comparison, search.entry, every=protocol.baseline == ALL)


def arm_of(search: VerdictSearch, name: str, pairs: int) -> tuple[Arm, list[LeftOut]]:
    """Return an arm with the runs of the first pairs, and those of its runs that can't be compared."""
    seeds = search.protocol.seeds_of(pairs)
    return arm_in(search.folder / f"seeds-{name}", name, search.display_name(name), seeds, search)


def arm_in(
    folder: Path, name: str, shown: str, seeds: range, search: ArmsSearch
) -> tuple[Arm, list[LeftOut]]:
    """Return an arm, named as `shown`, with its runs in a folder, of these seeds, and those that can't be compared.

    Raises:
        NothingToCompare: it has no run yet.
        UserError: all of its runs failed, other than by divergence.
    """
    if not seeds or not any(runs_in(folder)):
        raise NothingToCompare("time ran out before every arm had a run", CONTINUE)
    runs, not_comparable = find(Selection([str(folder)]), search.config.extensions)
    compared_runs = [run for run in runs if run.seed in seeds]
    left_out = [run for run in not_comparable if run.cfg is None or run.cfg["seed"] in seeds]
    if not compared_runs:
        diverged = [run for run in left_out if run.lost == "diverged"]
        if not diverged:
            raise UserError(
                f"None of the {len(left_out)} runs of arm {name} ({shown}) can be compared. The first is"
                f" {left_out[0].folder}: {left_out[0].why}"
            )
        return Arm(shown, {}, diverged), left_out
    arms, repeated = arms_of(compared_runs)
    if len(arms) > 1:
        raise UserError(
            f"The runs in {folder} have different configurations because conf/ has changed between them. Start another"
            f" {search.protocol.noun}: sweep.name=<name>."
        )
    return replace(arms[0], name=shown), [*left_out, *repeated]
