"""A comparison: arms, paired by seed, and a verdict for each contest between two of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minllm.errors import UserError
from minllm.study import bounds
from minllm.study.arms import Arm, arm_named, arms_of, floor_of, measured, refuse_incomparable
from minllm.study.contest import Contest, Judged, Noise
from minllm.study.divergence import diverged_seeds, divergence, lost_seeds
from minllm.study.facts import Fact, facts
from minllm.study.headline import headline
from minllm.study.measures import METRIC, Measures, measure
from minllm.study.metric import BITS, Metric, refuse_without, up_to_early_ends
from minllm.study.scaling.check import Check
from minllm.study.scaling.ladders import Family, Ladder, at_equal_sizes, families_among, ladders
from minllm.study.selection import LeftOut, Selection, find
from minllm.study.statistics import noise_floor, verdicts
from minllm.study.trust import impossible, refuse_broken
from minllm.study.tuning import Tuning

ALL = "all"
MARGIN = 0.005
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """The result of comparing several runs, grouped into arms.

    arms: the baseline first
    contests: each arm against the baseline, or every arm against every other
    margin: differences up to this fraction of the baseline's bits per byte don't matter
    noise: how much each arm differs from itself, if requested
    facts: what was equal between arms, and what wasn't
    left_out: runs that couldn't be compared
    tuning: by arm name, for arms whose learning rate was searched
    commands: commands that repeat the runs and this comparison
    options: further overrides of the command that repeats this comparison, such as grader=grammar
    kept_margin: whether the margin was stored with the runs, in a protocol, before they were trained
    metric: what decides it; other measures are of bits per byte
    families: choices at several sizes, the baseline first; without them, they are looked for among the arms
    checks: how a prediction of a difference at a larger size turned out, by the name of the family
    """

    arms: Sequence[Arm]
    contests: Sequence[Contest]
    margin: float
    noise: Sequence[Noise]
    facts: Sequence[Fact]
    left_out: Sequence[LeftOut]
    tuning: Mapping[str, Tuning] = field(default_factory=dict)
    commands: Sequence[str] = ()
    options: Sequence[str] = ()
    kept_margin: bool = False
    metric: Metric = BITS
    families: Sequence[Family] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @functools.cached_property
    def measures(self) -> list[Measures]:
        """What each contest says besides its mean difference; computed for reports only."""
        return [measure(contest.arm, contest.baseline, self.left_out) for contest in self.contests]

    @functools.cached_property
    def ladders(self) -> list[Ladder]:
        """What becomes of differences at scale, if the arms are choices at several sizes; for reports only."""
        if self.metric is not BITS:
            return []
        found = self.families or families_among(self.arms)
        return ladders(found, floor_of(self.arms), self.left_out, self.checks)

    @property
    def margin_bpb(self) -> float:
        """The margin in bits per byte, or what else decides."""
        return (*self.contests, *self.noise)[0].verdict.margin

    @property
    def shared_seed(self) -> int:
        """The first seed that most arms have. The run with this seed represents its arm."""
        seeds = [seed for arm in self.arms for seed in arm.runs]
        return max(sorted(set(seeds)), key=seeds.count)

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change any verdict, or are unlikely to."""
        return all(result.is_settled for result in self.contests or self.noise)

    @property
    def is_answered(self) -> bool:
        """Whether every contest has an outcome that stands; of choices at several sizes, every ladder an answer."""
        if self.ladders:
            settled = not any(tuning.unsettled for tuning in self.tuning.values())
            return settled and all(ladder.is_answered for ladder in self.ladders)
        return all(result.is_answered for result in self.contests or self.noise)

    @property
    def settling(self) -> str:
        """How many pairs would settle what is inconclusive, as a sentence for each contest."""
        results = [*self.contests, *self.noise]
        several = len(results) > 1
        named = ((f"{result.arm.name}: " if several else "", result.verdict.settling) for result in results)
        return " ".join(f"{name}{settling}" for name, settling in named if settling)

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        return headline(self)


def compare(
    runs: Sequence[str | Path] | Selection,
    *,
    baseline: str | None = None,
    margin: float = MARGIN,
    aa: bool = False,
    alpha: float = ALPHA,
    looks: int | Sequence[int] = 1,
    extensions: Iterable[str] = (),
    metric: Metric = BITS,
) -> Comparison:
    """Compare the arms that the runs belong to.

    Args:
        runs: folders of runs, or of grids and searches that contain them; or a `Selection`.
        baseline: the arm that the others are compared with, by its name or part of it; `all` compares every arm with
            every other. None is the arm of the first run.
        margin: the fraction of the baseline's bits per byte up to which a difference doesn't matter.
        aa: also compare each arm with itself, with two of its seeds as a pair.
        alpha: the probability of claiming a difference where there is none.
        looks: the numbers of pairs at which results are tested while seeds are added, such as [6, 8, 12], including
            the looks to come; 1 for a single look at all pairs. With `aa` they count the pairs of an arm with itself,
            for each of which there are two of an arm with another.
        extensions: packages besides minllm that the runs' configurations may use code from; name only ones you trust.
        metric: what decides; the margin is then a difference of shares.

    Raises:
        UserError: there are no such runs, only one arm, no arm of that name, or different validation texts.
    """
    selection = runs if isinstance(runs, Selection) else Selection([str(run) for run in runs])
    completed, left_out = find(selection, extensions)
    arms, repeated = arms_of(completed, left_out)
    refuse_broken(arms)
    return of_arms(
        arms,
        [*left_out, *repeated],
        baseline=baseline,
        margin=margin,
        aa=aa,
        alpha=alpha,
        looks=looks,
        metric=metric,
    )


def of_arms(
    arms: Sequence[Arm],
    left_out: Sequence[LeftOut] = (),
    *,
    baseline: str | None = None,
    margin: float = MARGIN,
    aa: bool = False,
    alpha: float = ALPHA,
    looks: int | Sequence[int] = 1,
    families: Sequence[Family] = (),
    metric: Metric = BITS,
) -> Comparison:
    """Compare arms that already have names; see `compare`, and for `families` see `Comparison`."""
    if not 0 < margin < 1:
        raise UserError(
            f"margin={margin} must be a fraction of the baseline's bits per byte, above 0 and below 1."
        )
    refuse_too_few(arms, left_out, aa)
    refuse_incomparable(arms)
    refuse_without(metric, measured(arms))
    metric = up_to_early_ends(metric, [arm.cfg for arm in measured(arms)])
    if baseline not in (None, ALL):
        first = arm_named(baseline, arms)
        arms = [first, *(arm for arm in arms if arm is not first)]
    planned = planned_looks(looks)
    looks_at_contests = [pairs * (2 if aa else 1) for pairs in planned]
    own_margin = (
        margin if metric.is_share else first_share(margin, measured(arms)[0], looks_at_contests, left_out)
    )
    judging = {"margin": own_margin, "alpha": alpha, "looks": planned, "unit": metric.unit}
    contests = contests_between(
        contestants(arms, baseline, families), {**judging, "looks": looks_at_contests}, left_out, metric
    )
    return Comparison(
        arms=arms,
        contests=[
            without_impossible(
                without_lost_seeds(contest, [contest.arm, contest.baseline], left_out, "ended")
            )
            for contest in contests
        ],
        margin=margin,
        noise=[
            without_lost_seeds(noise, [noise.arm], left_out, "diverged", "ended")
            for noise in noises(arms, judging, metric)
        ]
        if aa
        else [],
        facts=facts(arms),
        left_out=left_out,
        families=families,
        metric=metric,
    )


def planned_looks(looks: int | Sequence[int]) -> Sequence[int]:
    """Return the numbers of pairs at which results are tested; () for a single look at all pairs."""
    if looks == 1:
        return ()
    if isinstance(looks, int) or min(looks, default=0) < 1 or sorted(set(looks)) != list(looks):
        raise UserError(
            f"looks={looks} must be increasing numbers of pairs, such as [6, 8, 12], or 1 for a single look."
        )
    return looks


def contestants(
    arms: Sequence[Arm], baseline: str | None, families: Sequence[Family]
) -> list[tuple[Arm, Arm]]:
    """Return the arms to compare: all with the first, each with every other, or choices at several sizes at each."""
    of_equal_size = at_equal_sizes(families or families_among(arms)) if baseline is None else []
    every = [
        (arm, first) for i, first in enumerate(arms) for arm in arms[i + 1 :] if baseline == ALL or i == 0
    ]
    return of_equal_size or every


def contests_between(
    pairs: Sequence[tuple[Arm, Arm]],
    judging: Mapping[str, Any],
    left_out: Sequence[LeftOut],
    metric: Metric = BITS,
) -> list[Contest]:
    """Return the contests of some pairs, arm and baseline."""
    differences = [differences_between(*pair, left_out, metric) for pair in pairs]
    provable = [bounds.provable(*pair) for pair in pairs]
    judgements = verdicts([list(by_seed.values()) for by_seed in differences], **judging, provable=provable)
    return [
        Contest(
            *pair,
            {seed: value for seed, value in list(by_seed.items())[: verdict.pairs] if is_known(*pair, seed)},
            verdict,
            divergence=divergence(*pair, left_out),
            unit=metric.unit,
            reason=bounds.reason(*pair, verdict),
        )
        for pair, by_seed, verdict in zip(pairs, differences, judgements)
    ]


def differences_between(
    arm: Arm, baseline: Arm, left_out: Sequence[LeftOut], metric: Metric = BITS
) -> dict[int, float]:
    """Return the difference of each pair: infinite if one of them diverged, which is the worst; NaN if both did."""
    lost, baseline_lost = diverged_seeds(arm, left_out), diverged_seeds(baseline, left_out)
    seeds = sorted({*arm.runs, *lost} & {*baseline.runs, *baseline_lost})
    differences = {}
    for seed in seeds:
        if is_known(arm, baseline, seed):
            own, other = (metric.of(side.runs[seed].summary) for side in (arm, baseline))
            differences[seed] = own - other
        elif seed in lost and seed in baseline_lost:
            differences[seed] = math.nan
        else:
            differences[seed] = math.inf if seed in lost else -math.inf
    return differences


def is_known(arm: Arm, baseline: Arm, seed: int) -> bool:
    return seed in arm.runs and seed in baseline.runs


def noises(arms: Sequence[Arm], judging: Mapping[str, Any], metric: Metric) -> list[Noise]:
    """Return how much each arm differs from itself: its first and second seeds form a pair, and so on."""
    values = [[metric.of(run.summary) for run in arm.runs.values()] for arm in arms]
    judged = verdicts([[b - a for a, b in zip(losses[::2], losses[1::2])] for losses in values], **judging)
    return [Noise(arm, verdict, noise_floor(losses)) for arm, verdict, losses in zip(arms, judged, values)]


def share_of(share: float, arm: Arm) -> float:
    """Return a fraction of an arm's bits per byte, averaged over its seeds."""
    values = arm.values(METRIC)
    return share * sum(values) / len(values)


def first_share(share: float, arm: Arm, looks: Sequence[int], left_out: Sequence[LeftOut]) -> float:
    """Return a fraction of an arm's bits per byte, averaged over its seeds at the first look.

    Later seeds would move the margin, and earlier looks would no longer be what they were.
    """
    seeds = sorted({*arm.runs, *diverged_seeds(arm, left_out)})[: looks[0] if looks else None]
    values = [bpb(arm, seed) for seed in seeds if seed in arm.runs]
    return share * sum(values) / len(values) if values else share_of(share, arm)


def without_lost_seeds(
    judged: Judged, arms: Sequence[Arm], left_out: Sequence[LeftOut], *kinds: str
) -> Judged:
    """Return `judged`, made inconclusive if runs failed in one of these ways, because the others may be lucky ones."""
    for arm in arms:
        if lost := sorted(lost_seeds(arm, left_out, *kinds) - set(arm.runs)):
            seeds = f"seed{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            why = (
                f"{arm.name or 'The arm'} failed with {seeds}, so the remaining seeds may be the lucky ones."
            )
            return as_inconclusive(judged, why)
    return judged


def without_impossible(contest: Contest) -> Contest:
    """Return a contest, made inconclusive if an arm is below the corpus's floor."""
    for arm in (contest.arm, contest.baseline):
        if error := impossible(arm):
            return as_inconclusive(contest, f"{arm.name}: {error}")
    return contest


def with_tuning(comparison: Comparison, tuning: Mapping[str, Tuning]) -> Comparison:
    """Return the comparison with the tuning of its arms, by name."""
    contests = [without_unsettled_tuning(contest, tuning) for contest in comparison.contests]
    return replace(comparison, tuning=tuning, contests=contests)


def without_unsettled_tuning(contest: Contest, tuning: Mapping[str, Tuning]) -> Contest:
    """Return a contest, made inconclusive if more tuning of an arm could change its loss and so the answer.

    This holds in both directions: the loss that tuning finds on its own seeds may rise again on others, so an arm that
    is ahead before its tuning is settled needn't stay ahead. An arm that diverged with all values is worse, though.
    """
    names = [arm.name for arm in (contest.baseline, contest.arm)]
    unsettled = [name for name in names if name in tuning and tuning[name].unsettled]
    if not unsettled:
        return contest
    worse = {"better": contest.baseline.name, "worse": contest.arm.name}.get(contest.verdict.word)
    if unsettled == [worse] and tuning[worse].always_diverged:
        return replace(contest, reason=f"in the tuning of {worse}, {tuning[worse].unsettled}")
    reason = f"the tuning of {' and of '.join(unsettled)} isn't settled"
    why = " ".join(f"{name}: {tuning[name].unsettled}." for name in unsettled)
    return replace(as_inconclusive(contest, why), reason=reason)


def undecided(comparison: Comparison, why: str) -> Comparison:
    """Return the comparison with all verdicts inconclusive for now, for the reason `why`; more pairs can settle it."""

    def for_now(judged: Judged) -> Judged:
        before = {"settling": judged.verdict.settling, "seeds_to_settle": judged.verdict.seeds_to_settle}
        result = as_inconclusive(judged, why)
        return replace(result, verdict=replace(result.verdict, **before), failed=False)

    contests, noise = map(for_now, comparison.contests), map(for_now, comparison.noise)
    return replace(comparison, contests=list(contests), noise=list(noise))


def as_inconclusive(judged: Judged, why: str) -> Judged:
    """Return the result as inconclusive, for a reason that more pairs can't remove."""
    why = f"{why} {judged.verdict.why}"
    verdict = replace(
        judged.verdict, word="inconclusive", why=why, settling="", seeds_to_settle=None, futile=False
    )
    return replace(judged, verdict=verdict, failed=True)


def bpb(arm: Arm, seed: int) -> float:
    return arm.runs[seed].summary[METRIC]


def refuse_too_few(arms: Sequence[Arm], left_out: Sequence[LeftOut], aa: bool) -> None:
    reasons = "".join(f"\n  {run.folder}: {run.why}" for run in left_out)
    if not measured(arms):
        raise UserError(f"None of these runs can be compared:{reasons}")
    if len(arms) == 1 and not aa:
        raise UserError(
            "All these runs belong to one arm. Add runs of another arm, or type aa=true to measure the noise between"
            f" this arm's own runs.{' Left out:' if left_out else ''}{reasons}"
        )
    if len(arms) == 1 and len(arms[0].runs) < 2:
        raise UserError(
            "A noise floor needs at least two seeds, and this arm has one. Train more: seed=0,1,2,3,4,5."
        )
