"""A comparison: arms, in pairs of the same seed, and a word for each contest between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from minllm.errors import UserError, suggest
from minllm.study.arms import Arm, arms_of, identity, refuse_incomparable
from minllm.study.facts import Fact, facts
from minllm.study.selection import LeftOut, Selection, find
from minllm.study.statistics import Verdict, noise_floor, verdicts
from minllm.study.trust import impossible, refuse_broken

METRIC = "val_bpb"
"""Bits a byte: the loss that doesn't depend on how a tokenizer cuts the text."""

ALL = "all"
SAME = "Every pair reached exactly the same loss, so what differs between the two changed nothing that is computed."
MARGIN = 0.005
ALPHA = 0.05


@dataclass(frozen=True)
class Contest:
    """One arm against another, in pairs of the same seed.

    differences: the arm's bits a byte less the baseline's, by the seed of the pair
    failed: whether training failed at some seeds, or went wrong, so that no number of further ones settles it
    """

    arm: Arm
    baseline: Arm
    differences: Mapping[int, float]
    verdict: Verdict
    failed: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change anything."""
        return self.failed or self.verdict.word != "inconclusive"

    @property
    def is_the_same(self) -> bool:
        """Whether every pair reached the same loss to the last bit, as two arms do that compute the same."""
        return len(self.differences) > 1 and not any(self.differences.values())

    @property
    def seeds(self) -> list[int]:
        return list(self.differences)

    @property
    def sentence(self) -> str:
        link = {
            "better": "is better than",
            "worse": "is worse than",
            "equivalent": "is equivalent to",
            "inconclusive": "against",
        }[self.verdict.word]
        end = ": inconclusive" if self.verdict.word == "inconclusive" else ""
        same = SAME * self.is_the_same
        said = [
            f"{self.arm.name} {link} {self.baseline.name}{end}.",
            self.verdict.why,
            self.verdict.settling,
            same,
        ]
        return " ".join(filter(None, said))


@dataclass(frozen=True)
class Noise:
    """An arm against itself: its runs in pairs of different seeds.

    floor: the difference of two of its runs is within ± this, 95 times in a hundred, in bits a byte; None from a
        single seed
    failed: whether training failed at some seeds
    """

    arm: Arm
    verdict: Verdict
    floor: float | None
    failed: bool = False

    @property
    def is_settled(self) -> bool:
        return self.failed or self.verdict.word != "inconclusive"


Judged = TypeVar("Judged", Contest, Noise)


@dataclass(frozen=True)
class Tuning:
    """How an arm's learning rate was chosen: the rates that were tried, with the metric of each, and the one taken."""

    tried: Mapping[float, float | None]
    chosen: float

    @property
    def at_edge(self) -> bool:
        return self.chosen in (min(self.tried), max(self.tried))


@dataclass(frozen=True)
class Comparison:
    """What several runs say of the arms that they belong to.

    arms: the baseline first
    contests: each arm against the baseline, or every arm against every other
    margin: differences of this share of the baseline's bits a byte don't matter
    noise: what an arm differs from itself by, where that was asked for
    facts: what was equal between arms, and what wasn't
    left_out: runs that couldn't be compared
    tuning: by an arm's name, where its learning rate was searched
    commands: what makes the runs again, and this comparison of them
    kept_margin: whether the margin was stored with the runs, in a protocol, before they were trained
    """

    arms: Sequence[Arm]
    contests: Sequence[Contest]
    margin: float
    noise: Sequence[Noise]
    facts: Sequence[Fact]
    left_out: Sequence[LeftOut]
    tuning: Mapping[str, Tuning] = field(default_factory=dict)
    commands: Sequence[str] = ()
    kept_margin: bool = False

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def margin_bpb(self) -> float:
        """The margin in bits a byte."""
        return share_of(self.margin, self.baseline)

    @property
    def shared_seed(self) -> int:
        """The first seed that most arms have: what one run of each arm is shown by."""
        seeds = [seed for arm in self.arms for seed in arm.runs]
        return max(sorted(set(seeds)), key=seeds.count)

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change any word."""
        return all(one.is_settled for one in self.contests or self.noise)

    @property
    def settling(self) -> str:
        """How many pairs would settle what is inconclusive: a sentence for each contest."""
        judged = [*self.contests, *self.noise]
        several = len(judged) > 1
        named = ((f"{one.arm.name}: " if several else "", one.verdict.settling) for one in judged)
        return " ".join(f"{name}{settling}" for name, settling in named if settling)

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        if not self.contests:
            return (
                "; ".join(
                    f"{one.arm.name or 'The arm'} against itself: {one.verdict.word}" for one in self.noise
                )
                + "."
            )
        if len(self.contests) == 1:
            return self.contests[0].sentence.partition(". ")[0] + "."
        best = [arm for arm in self.arms if self._beats_all(arm)]
        if best:
            return f"{best[0].name} is better than {'all others' if len(self.arms) > 2 else 'the other'}."
        if len(self.contests) <= 3:
            words = [
                f"{one.arm.name} against {one.baseline.name}: {one.verdict.word}" for one in self.contests
            ]
            return "; ".join(words) + "."
        return self._counted()

    def _counted(self) -> str:
        """The answer where there are too many contests to name."""
        if any(contest.baseline is not self.baseline for contest in self.contests):
            return f"None of the {len(self.arms)} arms is better than all others."
        words = [contest.verdict.word for contest in self.contests]
        counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
        return f"Of {len(words)} arms against {self.baseline.name}: {', '.join(counts)}."

    def _beats_all(self, arm: Arm) -> bool:
        won = {id(one.baseline) for one in self.contests if one.arm is arm and one.verdict.word == "better"}
        won |= {id(one.arm) for one in self.contests if one.baseline is arm and one.verdict.word == "worse"}
        return won == {id(other) for other in self.arms if other is not arm}


def compare(
    runs: Sequence[str | Path] | Selection,
    *,
    baseline: str | None = None,
    margin: float = MARGIN,
    aa: bool = False,
    alpha: float = ALPHA,
    looks: int = 1,
    extensions: Iterable[str] = (),
) -> Comparison:
    """Compare the arms that some runs make up.

    Args:
        runs: folders of runs, or of grids and searches that hold them; or what else the runs are known by.
        baseline: the arm that the others are held against, by its name or a part of it; `all` holds every arm against
            every other. None is the arm of the first run.
        margin: the share of the baseline's bits a byte by which a difference doesn't matter.
        aa: hold each arm against itself, too: two of its seeds are a pair.
        alpha: how often a difference may be claimed where there's none.
        looks: how often the verdict is looked at while seeds are added.
        extensions: packages besides minllm that the runs' configurations may take code from; name only what you trust.

    Raises:
        UserError: no such runs, a single arm, no arm of that name, or different validation texts.
    """
    selection = runs if isinstance(runs, Selection) else Selection([str(run) for run in runs])
    found, left_out = find(selection, extensions)
    arms, repeated = arms_of(found)
    refuse_broken(arms)
    return of_arms(
        arms,
        [*left_out, *repeated],
        baseline=baseline,
        margin=margin,
        aa=aa,
        alpha=alpha,
        looks=looks,
    )


def of_arms(
    arms: Sequence[Arm],
    left_out: Sequence[LeftOut] = (),
    *,
    baseline: str | None = None,
    margin: float = MARGIN,
    aa: bool = False,
    alpha: float = ALPHA,
    looks: int = 1,
) -> Comparison:
    """Compare arms, which have their names already; see `compare`."""
    if not 0 < margin < 1:
        raise UserError(
            f"margin={margin} is a share of the baseline's bits a byte: give a number above 0 and below 1."
        )
    refuse_too_few(arms, left_out, aa)
    refuse_incomparable(arms)
    if baseline not in (None, ALL):
        first = arm_named(baseline, arms)
        arms = [first, *(arm for arm in arms if arm is not first)]
    judging = {"margin": share_of(margin, arms[0]), "alpha": alpha, "looks": looks}
    contests = contests_between(arms, judging, every=baseline == ALL)
    return Comparison(
        arms=arms,
        contests=[
            without_impossible(without_lost_seeds(contest, [contest.arm, contest.baseline], left_out))
            for contest in contests
        ],
        margin=margin,
        noise=[without_lost_seeds(one, [one.arm], left_out) for one in noises(arms, judging)] if aa else [],
        facts=facts(arms),
        left_out=left_out,
    )


def contests_between(arms: Sequence[Arm], judging: Mapping[str, Any], *, every: bool) -> list[Contest]:
    """Return the contests of all arms with the first, or of `every` arm with each that is named before it."""
    pairs = [(arm, other) for i, other in enumerate(arms) for arm in arms[i + 1 :] if every or i == 0]
    differences = [
        {seed: bpb(arm, seed) - bpb(other, seed) for seed in arm.runs if seed in other.runs}
        for arm, other in pairs
    ]
    judged = verdicts([list(one.values()) for one in differences], **judging)
    return [Contest(*pair, one, verdict) for pair, one, verdict in zip(pairs, differences, judged)]


def noises(arms: Sequence[Arm], judging: Mapping[str, Any]) -> list[Noise]:
    """Return what each arm differs from itself by: its first seed and its second are a pair, and so on."""
    values = [arm.values(METRIC) for arm in arms]
    judged = verdicts([[b - a for a, b in zip(one[::2], one[1::2])] for one in values], **judging)
    return [Noise(arm, verdict, noise_floor(one)) for arm, verdict, one in zip(arms, judged, values)]


def share_of(share: float, arm: Arm) -> float:
    """Return a share of an arm's bits a byte, the mean over its seeds."""
    values = arm.values(METRIC)
    return share * sum(values) / len(values)


def without_lost_seeds(judged: Judged, arms: Sequence[Arm], left_out: Sequence[LeftOut]) -> Judged:
    """Return what was judged, undecided if training failed at some seeds: the others may be the lucky ones."""
    for arm in arms:
        own = identity(arm.first.cfg)
        failed = {one.cfg["seed"] for one in left_out if one.failed and one.cfg and identity(one.cfg) == own}
        if lost := sorted(failed - set(arm.runs)):
            seeds = f"seed{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            why = f"{arm.name or 'The arm'} failed with {seeds}, and the seeds that are left may be the lucky ones."
            return put_off(judged, why)
    return judged


def without_impossible(contest: Contest) -> Contest:
    """Return a contest, undecided if an arm is below what no model can be below."""
    for arm in (contest.arm, contest.baseline):
        if error := impossible(arm):
            return put_off(contest, f"{arm.name}: {error}")
    return contest


def undecided(comparison: Comparison, why: str) -> Comparison:
    """Return a comparison of which nothing may be said yet, for a reason; further pairs settle it."""

    def later(one: Judged) -> Judged:
        before = {"settling": one.verdict.settling, "seeds_to_settle": one.verdict.seeds_to_settle}
        put = put_off(one, why)
        return replace(put, verdict=replace(put.verdict, **before), failed=False)

    contests, noise = map(later, comparison.contests), map(later, comparison.noise)
    return replace(comparison, contests=list(contests), noise=list(noise))


def put_off(one: Judged, why: str) -> Judged:
    """Return what was judged as inconclusive, for a reason that no number of further pairs removes."""
    why = f"{why} {one.verdict.why}"
    verdict = replace(one.verdict, word="inconclusive", why=why, settling="", seeds_to_settle=None)
    return replace(one, verdict=verdict, failed=True)


def bpb(arm: Arm, seed: int) -> float:
    return arm.runs[seed].summary[METRIC]


def refuse_too_few(arms: Sequence[Arm], left_out: Sequence[LeftOut], aa: bool) -> None:
    reasons = "".join(f"\n  {one.folder}: {one.why}" for one in left_out)
    if not arms:
        raise UserError(f"None of these runs can be compared:{reasons}")
    if len(arms) == 1 and not aa:
        raise UserError(
            "All these runs are of one arm. Name runs of another too, or type aa=true to see how far this arm's own"
            f" runs lie apart.{' Left out are:' if left_out else ''}{reasons}"
        )
    if len(arms) == 1 and len(arms[0].runs) < 2:
        raise UserError(
            "A noise floor needs two seeds or more, and this arm has one. Train more: seed=0,1,2,3,4,5."
        )


def arm_named(word: str, arms: Sequence[Arm]) -> Arm:
    """Return the arm of a name, or the only one whose name has this part. UserError if there's none, or several."""
    exact = [arm for arm in arms if arm.name == word]
    parts = exact or [
        arm for arm in arms if word in arm.name.replace("=", " ").split() or word in arm.name.split()
    ]
    if len(parts) == 1:
        return parts[0]
    names = [arm.name for arm in arms]
    what = "several arms" if parts else "no arm"
    raise UserError(f"baseline={word} names {what}. The arms are {', '.join(names)}.{suggest(word, names)}")
