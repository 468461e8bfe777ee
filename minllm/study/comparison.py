"""A comparison: arms, paired by seed, and a verdict for each contest between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from minllm.errors import UserError, suggest
from minllm.study.arms import Arm, arms_of, identity, refuse_incomparable
from minllm.study.facts import Fact, facts
from minllm.study.selection import LeftOut, Selection, find
from minllm.study.standing import Standing
from minllm.study.statistics import Verdict, noise_floor, verdicts
from minllm.study.trust import impossible, refuse_broken

METRIC = "val_bpb"
"""Bits per byte: a loss that doesn't depend on how the tokenizer splits the text."""

ALL = "all"
SAME = "Every pair reached exactly the same loss, so what differs between the two had no effect on the computation."
MARGIN = 0.005
ALPHA = 0.05


@dataclass(frozen=True)
class Contest:
    """One arm against another, in pairs of runs with the same seed.

    differences: the arm's bits per byte minus the baseline's, by the seed of the pair
    failed: whether training failed or went wrong at some seeds, so that more seeds can't settle it
    standing: how it stands among all ideas tried, if it was tested among them
    """

    arm: Arm
    baseline: Arm
    differences: Mapping[int, float]
    verdict: Verdict
    failed: bool = False
    standing: Standing | None = None

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change anything."""
        return self.failed or self.is_answered

    @property
    def is_answered(self) -> bool:
        """Whether it has an outcome other than inconclusive, and one that holds among all ideas if it has to."""
        return self.verdict.word != "inconclusive" and not (
            self.standing and self.standing.is_open(self.verdict)
        )

    @property
    def is_the_same(self) -> bool:
        """Whether every pair reached exactly the same loss, as arms that compute the same thing do."""
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
        among = self.standing.words(self.verdict) if self.standing else ""
        same = SAME * self.is_the_same
        said = [
            f"{self.arm.name} {link} {self.baseline.name}{end}{among}.",
            self.verdict.why,
            self.verdict.settling,
            same,
        ]
        return " ".join(filter(None, said))


@dataclass(frozen=True)
class Noise:
    """An arm against itself: its runs in pairs of different seeds.

    floor: in 95 % of cases, the difference between two of its runs is within ± this many bits per byte; None for a
        single seed
    failed: whether training failed at some seeds
    """

    arm: Arm
    verdict: Verdict
    floor: float | None
    failed: bool = False

    @property
    def is_settled(self) -> bool:
        return self.failed or self.is_answered

    @property
    def is_answered(self) -> bool:
        return self.verdict.word != "inconclusive"


Judged = TypeVar("Judged", Contest, Noise)


@dataclass(frozen=True)
class Tuning:
    """How an arm's learning rate was chosen: the rates that were tried, with the metric of each, and the choice."""

    tried: Mapping[float, float | None]
    chosen: float

    @property
    def at_edge(self) -> bool:
        return self.chosen in (min(self.tried), max(self.tried))


@dataclass(frozen=True)
class Comparison:
    """What several runs say about the arms that they belong to.

    arms: the baseline first
    contests: each arm against the baseline, or every arm against every other
    margin: differences up to this fraction of the baseline's bits per byte don't matter
    noise: how much each arm differs from itself, if requested
    facts: what was equal between arms, and what wasn't
    left_out: runs that couldn't be compared
    tuning: by arm name, for arms whose learning rate was searched
    commands: commands that repeat the runs and this comparison
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
        """The margin in bits per byte."""
        return share_of(self.margin, self.baseline)

    @property
    def shared_seed(self) -> int:
        """The first seed that most arms have. The run with this seed represents its arm."""
        seeds = [seed for arm in self.arms for seed in arm.runs]
        return max(sorted(set(seeds)), key=seeds.count)

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change any verdict."""
        return all(one.is_settled for one in self.contests or self.noise)

    @property
    def is_answered(self) -> bool:
        """Whether every contest has an outcome that stands."""
        return all(one.is_answered for one in self.contests or self.noise)

    @property
    def settling(self) -> str:
        """How many pairs would settle what is inconclusive, as a sentence for each contest."""
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
        return self._among_several() + self._not_yet()

    def _among_several(self) -> str:
        best = [arm for arm in self.arms if self._beats_all(arm)]
        if best:
            return f"{best[0].name} is better than {'all others' if len(self.arms) > 2 else 'the other'}."
        if len(self.contests) <= 3:
            words = [
                f"{one.arm.name} against {one.baseline.name}: {one.verdict.word}" for one in self.contests
            ]
            return "; ".join(words) + "."
        return self._counted()

    def _not_yet(self) -> str:
        """What is established within this study, but not yet among all ideas."""
        waiting = [
            f"{one.arm.name} against {one.baseline.name} ({one.standing.needs(one.verdict)})"
            for one in self.contests
            if one.standing and one.standing.is_open(one.verdict)
        ]
        return f" On its own, not yet among all ideas: {', '.join(waiting)}." if waiting else ""

    def _counted(self) -> str:
        """The answer when there are too many contests to name."""
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
    """Compare the arms that the runs belong to.

    Args:
        runs: folders of runs, or of grids and searches that contain them; or a `Selection`.
        baseline: the arm that the others are compared with, by its name or part of it; `all` compares every arm with
            every other. None is the arm of the first run.
        margin: the fraction of the baseline's bits per byte up to which a difference doesn't matter.
        aa: also compare each arm with itself, with two of its seeds as a pair.
        alpha: the probability of claiming a difference where there is none.
        looks: how many times the verdict is looked at while seeds are added.
        extensions: packages besides minllm that the runs' configurations may use code from; name only ones you trust.

    Raises:
        UserError: there are no such runs, only one arm, no arm of that name, or different validation texts.
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
    """Compare arms that already have names; see `compare`."""
    if not 0 < margin < 1:
        raise UserError(
            f"margin={margin} must be a fraction of the baseline's bits per byte, above 0 and below 1."
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
    """Return the contests of all arms with the first arm, or of `every` arm with each arm before it."""
    pairs = [(arm, other) for i, other in enumerate(arms) for arm in arms[i + 1 :] if every or i == 0]
    differences = [
        {seed: bpb(arm, seed) - bpb(other, seed) for seed in arm.runs if seed in other.runs}
        for arm, other in pairs
    ]
    judged = verdicts([list(one.values()) for one in differences], **judging)
    return [Contest(*pair, one, verdict) for pair, one, verdict in zip(pairs, differences, judged)]


def noises(arms: Sequence[Arm], judging: Mapping[str, Any]) -> list[Noise]:
    """Return how much each arm differs from itself: its first and second seeds form a pair, and so on."""
    values = [arm.values(METRIC) for arm in arms]
    judged = verdicts([[b - a for a, b in zip(one[::2], one[1::2])] for one in values], **judging)
    return [Noise(arm, verdict, noise_floor(one)) for arm, verdict, one in zip(arms, judged, values)]


def share_of(share: float, arm: Arm) -> float:
    """Return a fraction of an arm's bits per byte, averaged over its seeds."""
    values = arm.values(METRIC)
    return share * sum(values) / len(values)


def without_lost_seeds(judged: Judged, arms: Sequence[Arm], left_out: Sequence[LeftOut]) -> Judged:
    """Return `judged`, made inconclusive if training failed at some seeds, because the others may be lucky ones."""
    for arm in arms:
        own = identity(arm.first.cfg)
        failed = {one.cfg["seed"] for one in left_out if one.failed and one.cfg and identity(one.cfg) == own}
        if lost := sorted(failed - set(arm.runs)):
            seeds = f"seed{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            why = (
                f"{arm.name or 'The arm'} failed with {seeds}, so the remaining seeds may be the lucky ones."
            )
            return put_off(judged, why)
    return judged


def without_impossible(contest: Contest) -> Contest:
    """Return a contest, made inconclusive if an arm is below the corpus's floor."""
    for arm in (contest.arm, contest.baseline):
        if error := impossible(arm):
            return put_off(contest, f"{arm.name}: {error}")
    return contest


def undecided(comparison: Comparison, why: str) -> Comparison:
    """Return the comparison with all verdicts inconclusive for now, for the reason `why`; more pairs can settle it."""

    def later(one: Judged) -> Judged:
        before = {"settling": one.verdict.settling, "seeds_to_settle": one.verdict.seeds_to_settle}
        put = put_off(one, why)
        return replace(put, verdict=replace(put.verdict, **before), failed=False)

    contests, noise = map(later, comparison.contests), map(later, comparison.noise)
    return replace(comparison, contests=list(contests), noise=list(noise))


def put_off(one: Judged, why: str) -> Judged:
    """Return the result as inconclusive, for a reason that more pairs can't remove."""
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
            "All these runs belong to one arm. Add runs of another arm, or type aa=true to measure the noise between"
            f" this arm's own runs.{' Left out:' if left_out else ''}{reasons}"
        )
    if len(arms) == 1 and len(arms[0].runs) < 2:
        raise UserError(
            "A noise floor needs at least two seeds, and this arm has one. Train more: seed=0,1,2,3,4,5."
        )


def arm_named(word: str, arms: Sequence[Arm]) -> Arm:
    """Return the arm of this name, or the only one whose name contains it. UserError if there is none, or several."""
    exact = [arm for arm in arms if arm.name == word]
    parts = exact or [
        arm for arm in arms if word in arm.name.replace("=", " ").split() or word in arm.name.split()
    ]
    if len(parts) == 1:
        return parts[0]
    names = [arm.name for arm in arms]
    what = "several arms" if parts else "no arm"
    raise UserError(f"baseline={word} matches {what}. The arms are {', '.join(names)}.{suggest(word, names)}")
