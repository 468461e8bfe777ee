"""The sentences that the HTML, Markdown and terminal reports share."""

from __future__ import annotations

import math
from collections.abc import Mapping

from minllm.page import units
from minllm.study import bounds, trust
from minllm.study.arms import Arm, measured
from minllm.study.boundaries import EXACT_PAIRS
from minllm.study.comparison import Comparison
from minllm.study.contest import Noise
from minllm.study.facts import NEAR
from minllm.study.metric import early_ends
from minllm.study.tuning import Tried, Tuning

NO_DIFFERENCES = "Only the seeds differ."
TIME_WAS_UP = (
    "The time was up before everything was trained. To continue, repeat the command with more sweep.minutes."
)
NONE_LEFT_OUT = "None: the comparison includes every run that was found."
FEW = 12
"""The most values whose results are listed; of more, only the best are."""


ABOUT_DIFFERENCES = (
    "A dash means that an arm doesn't have the setting; null means that it is set to null. All other settings that"
    " affect what is learned are the same."
)
ABOUT_SD = "Values are means over an arm's seeds; sd is the standard deviation of its bits per byte over those seeds."
ABOUT_ARMS = f"{ABOUT_SD} A dash means that a value is unknown."
KEPT = "This margin was stored in the verdict's protocol before the compared runs were trained."
NOT_KEPT = (
    "This margin was given with the comparison; whether it was chosen before the results were seen"
    " isn't recorded."
)


BOUNDS = (
    "The true value of an arm whose bits per byte are an upper bound may be lower. Against an exact value, such an arm"
    " can only be found better, and the exact one only worse, unless runs diverged; neither equivalence nor the"
    " opposite is claimed, and a contest ends when its values differ in the direction that proves nothing. Two bounds"
    " are compared as they are if their objectives are of one family, and not at all otherwise."
)

AMONG_ALL = (
    "Each contest was also tested among all ideas in the ledger (outputs/ledger.jsonl), at a level that was fixed"
    " before its first run by LORD++, so that at most 5 % of all ideas found to be better are expected not to be. Its"
    " p-value there is valid at whichever look the study ends, and uses all pairs, also those that were trained after"
    " the contest was settled on its own."
)


def arm_name(arm: Arm) -> str:
    """Return an arm's name, or "the only arm", because a single arm has no name."""
    return arm.name or "the only arm"


def introduction(comparison: Comparison) -> str:
    """Return what was compared, by which metric, and which differences matter."""
    seeds = sorted({len(arm.seeds) for arm in comparison.arms})
    each = f"{seeds[0]} {'seeds' if seeds[0] != 1 else 'seed'}"
    each = f"{each} each" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    arms = f"{len(comparison.arms)} arms" if len(comparison.arms) > 1 else "One arm"
    measure = measured(comparison.arms)[0]
    of = f"the baseline, {arm_name(measure)}" if measure is comparison.baseline else arm_name(measure)
    share = "" if comparison.metric.is_share else f" ({100 * comparison.margin:.3g} % of {of})"
    text = (
        f"{arms} with {each}, measured in {comparison.metric.measured} (lower is better)."
        f" A difference of up to {units.bits(comparison.margin_bpb)} {comparison.metric.unit}{share} is considered too"
        " small to matter."
        f" {KEPT if comparison.kept_margin else NOT_KEPT}"
    )
    return " ".join(filter(None, [text, about_early_ends(comparison), bounds.about(comparison.arms)]))


def about_early_ends(comparison: Comparison) -> str:
    """Return a sentence on runs that end at an accuracy, before their budget is spent; "" if none do."""
    ends = early_ends([arm.cfg for arm in measured(comparison.arms)])
    if not ends:
        return ""
    at = f"Runs ended at the first evaluation with an accuracy of at least {' or '.join(f'{end:g}' for end in ends)}"
    if comparison.metric.name == "val_accuracy":
        most = f"{comparison.metric.most:g}"
        return f"{at}, after different numbers of steps; accuracies above {most} count as {most}."
    name = comparison.metric.name
    return f"{at}, so values of {name} are after different numbers of steps and can't be compared fairly."


def curves_of_bounds(comparison: Comparison) -> str:
    """Return a sentence that names the arms whose learning curves are upper bounds; "" if there are none."""
    named = [arm_name(arm) for arm in measured(comparison.arms) if arm.bound == "upper"]
    return f"The values of {' and of '.join(named)} are upper bounds." if named else ""


def warnings(comparison: Comparison) -> list[str]:
    """Return the warnings that come first in every report, because they may change the answer."""
    return [
        *trust.warnings(comparison.arms),
        *(_unsettled(name, tuning) for name, tuning in comparison.tuning.items() if tuning.unsettled),
    ]


def _unsettled(name: str, tuning: Tuning) -> str:
    undecided = (
        "It can't be better than another arm, only worse."
        if tuning.always_diverged
        else "Better values may change the answer, so none of its contests is decided."
    )
    return (
        f"The tuning of {name} isn't settled: {tuning.unsettled}. {undecided} Widen the search in a new verdict"
        " (sweep.name=<name>)."
    )


def equal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if fact.equal]
    return f"Held equal: {'; '.join(facts)}." if facts else "Nothing was held equal."


def unequal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if not fact.equal]
    return f"Not equal: {'; '.join(facts)}." if facts else "Nothing that was checked differed."


def noise(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm that was compared with itself."""
    return [_noise(noise, comparison.metric.unit) for noise in comparison.noise]


def _noise(noise: Noise, unit: str) -> str:
    name, seeds = arm_name(noise.arm), len(noise.arm.runs)
    if noise.floor is None:
        return (
            f"{name} has {'only one' if seeds else 'no'} completed run, so the spread of its runs is unknown."
        )
    compared = f"Compared with itself: {noise.verdict.word}."
    spread = (
        f"Two runs of {name} that differ only in their seed are within {units.bits(noise.floor)} {unit} of each other"
        f" in 95 % of cases ({seeds} seeds)."
        if noise.floor
        else f"All {seeds} runs of {name} have exactly the same value, which says little about other seeds."
    )
    return " ".join(filter(None, [spread, compared, noise.verdict.why, noise.verdict.settling]))


def about_tuning(comparison: Comparison) -> str:
    """Return the sentence before what was tried and chosen."""
    unit = comparison.metric.unit
    values = f"mean share {unit}" if comparison.metric.is_share else f"mean {unit}"
    return f"Each arm was tuned with seeds that aren't compared. In brackets, the {values} over these seeds:"


def tuning(comparison: Comparison) -> list[str]:
    """Return what was tried and chosen for each arm that was tuned."""
    known = {arm.name: arm.bound for arm in comparison.arms}
    return [f"{name}: {tuned(tuning, known.get(name))}" for name, tuning in comparison.tuning.items()]


def tuned(tuning: Tuning, bound: str | None = None) -> str:
    """Return what was chosen and how, and what was tried, with marks if its losses are upper bounds."""
    failed = sum(not tried.succeeded for tried in tuning.tried)
    if len(tuning.tried) <= FEW:
        listed = "; ".join(_tried(tried, bound) for tried in tuning.tried)
    else:
        best = sorted(
            (tried for tried in tuning.tried if len(tried.losses) > 1),
            key=lambda tried: tried.mean or math.inf,
        )
        listed = f"{len(tuning.tried)} values, of which {failed} failed"
        listed += f"; the best: {'; '.join(_tried(tried, bound) for tried in best)}" if best else ""
    text = f"{values(tuning.chosen)}: {tuning.how}. Tried in {tuning.runs} runs (at most {tuning.most_runs}): {listed}."
    return f"{text} Not settled: {tuning.unsettled}." if tuning.unsettled else text


def values(chosen: Mapping[str, float]) -> str:
    return " ".join(f"{key}={units.rate(value)}" for key, value in chosen.items())


def _tried(tried: Tried, bound: str | None) -> str:
    numbers = ", ".join(map(units.rate, tried.values.values()))
    seeds = f", {len(tried.losses)} seeds" if len(tried.losses) > 1 else ""
    return f"{numbers} ({'failed' if tried.mean is None else units.marked(units.bits(tried.mean), bound)}{seeds})"


def left_out(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the folder of each run that isn't compared, and why."""
    return [(str(run.folder), run.why) for run in comparison.left_out]


def repeating(comparison: Comparison) -> list[str]:
    """Return a note for when the last command names the runs' folders."""
    if comparison.commands:
        return []
    return ["If you train the runs again, put their new folders in the last command."]


def judged(comparison: Comparison) -> list[str]:
    """Return how the verdicts were reached, and which run is shown where only one can be."""
    confidence = {contest.verdict.confidence for contest in comparison.contests} or {0.95}
    looks = (
        "The numbers of pairs at which results are tested while seeds are added were stored before the runs were"
        " trained. The looks share the error rate (alpha spending), so p-values and intervals hold whenever the study"
        " stops; stopping for futility makes no claim."
        if comparison.kept_margin
        else "The error rates assume a single look at a number of seeds fixed beforehand; whether seeds"
        " were added after an earlier comparison isn't recorded."
    )
    return [
        f"A contest is one arm against another. Two runs with the same seed form a pair. {pairs(comparison)} The tests"
        f" use the difference within each pair (arm minus baseline) in {comparison.metric.measured}, at the end of"
        " training; the"
        f" interval is Student's t at {100 * min(confidence):.4g} %, widened if the differences are skewed (Hall).",
        "An arm is better or worse if both the paired t test and the sign-flip test (exact for up to"
        f" {EXACT_PAIRS} pairs) reject the hypothesis of no difference. It is equivalent if two one-sided t tests"
        " reject a difference as large as the margin. A run that diverged counts as the worst outcome: the sign-flip"
        " test then uses ranks and decides alone, equivalence isn't claimed, and neither is that the one that diverged"
        " more often is better. The p-values of differences and equivalence are corrected for the number of contests by"
        f" Holm's method. Anything else is inconclusive. {looks}",
        *([BOUNDS] if bounds.about(comparison.arms) else []),
        *([AMONG_ALL] if any(contest.standing for contest in comparison.contests) else []),
        f"Where a single run represents an arm, as for its texts, it is the run with seed {comparison.shared_seed}: the"
        " first seed that most arms have, whatever its loss. If an arm has two runs with the same seed, the later one"
        f" counts. Amounts within {100 * NEAR:g} % of each other are considered equal.",
    ]


def pairs(comparison: Comparison) -> str:
    """Return what the two runs of a pair have in common, as far as is known."""
    unequal = {fact.what for fact in comparison.facts if not fact.equal}
    settings = sorted(unequal & {"data", "tokenizer", "batch size", "objective"})
    code = sorted(unequal & {"version of minllm", "torch"})
    begun = any(arm.cfg.get("init_from") for arm in comparison.arms)
    weights = (
        "Some start from the weights of another run (init_from)."
        if begun
        else "Their initial weights use the same random numbers wherever both have a parameter of the same"
        " name and shape."
    )
    batches = (
        f"They see different batches, because their settings differ ({', '.join(settings)})."
        if settings
        else "Their settings give both the same batches in the same order."
    )
    other = f" Their code may differ ({', '.join(code)}), which may change both." if code else ""
    return f"{weights} {batches}{other}"
