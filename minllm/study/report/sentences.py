"""The sentences that the HTML, Markdown and terminal reports share."""

from __future__ import annotations

from minllm.page import units
from minllm.study import trust
from minllm.study.arms import Arm
from minllm.study.comparison import Comparison, Tuning
from minllm.study.facts import NEAR
from minllm.study.statistics import EXACT_PAIRS

NO_DIFFERENCES = "Only the seeds differ."
NONE_LEFT_OUT = "None: the comparison includes every run that was found."
TUNED = "Each arm's learning rate was tuned. The bits per byte at each rate:"


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


AMONG_ALL = (
    "Each contest was also tested among all ideas in the ledger (outputs/ledger.jsonl), at a level that was fixed"
    " before its first run by LORD++, so that at most 5 % of all ideas found to be better are expected not to be. Its"
    " p-value there is the larger one of the two tests, corrected for the planned looks."
)


def called(arm: Arm) -> str:
    """Return an arm's name, or "the only arm", because a single arm has no name."""
    return arm.name or "the only arm"


def introduction(comparison: Comparison) -> str:
    """Return what was compared, by which metric, and which differences matter."""
    seeds = sorted({len(arm.runs) for arm in comparison.arms})
    each = f"{seeds[0]} {'seeds' if seeds[0] != 1 else 'seed'}"
    each = f"{each} each" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    arms = f"{len(comparison.arms)} arms" if len(comparison.arms) > 1 else "One arm"
    return (
        f"{arms} with {each}, measured in bits per byte of held-out text (lower is better)."
        f" A difference of up to {units.bits(comparison.margin_bpb)} bits per byte ({100 * comparison.margin:.3g} % of"
        f" the baseline, {called(comparison.baseline)}) is considered too small to matter."
        f" {KEPT if comparison.kept_margin else NOT_KEPT}"
    )


def warnings(comparison: Comparison) -> list[str]:
    """Return the warnings that come first in every report, because they may change the answer."""
    found = trust.warnings(comparison.arms)
    edges = [name for name, one in comparison.tuning.items() if one.at_edge]
    if not edges:
        return found
    return [
        *found,
        f"The learning rate of {' and of '.join(edges)} is at the edge of the range that was tried, so a better rate"
        " may lie outside it and change the answer. Try more: search.rates=[…] in a new verdict (sweep.name=<name>).",
    ]


def equal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if fact.equal]
    return f"Held equal: {'; '.join(facts)}." if facts else "Nothing was held equal."


def unequal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if not fact.equal]
    return f"Not equal: {'; '.join(facts)}." if facts else "Nothing that was checked differed."


def noise(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm that was compared with itself."""
    return [
        f"Two runs of {called(one.arm)} that differ only in their seed are within"
        f" {units.bits(one.floor)} bits per byte of each other in 95 % of cases"
        f" ({len(one.arm.runs)} seeds). Compared with itself: {one.verdict.word}. "
        + " ".join(filter(None, [one.verdict.why, one.verdict.settling]))
        if one.floor is not None
        else f"{called(one.arm)} has only one seed, so the spread of its runs is unknown."
        for one in comparison.noise
    ]


def tuning(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm whose learning rate was searched."""
    return [f"{name}: {_tuned(one)}" for name, one in comparison.tuning.items()]


def left_out(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the folder of each run that isn't compared, and why."""
    return [(str(one.folder), one.why) for one in comparison.left_out]


def repeating(comparison: Comparison) -> list[str]:
    """Return a note for when the last command names the runs' folders."""
    if comparison.commands:
        return []
    return ["If you train the runs again, put their new folders in the last command."]


def judged(comparison: Comparison) -> list[str]:
    """Return how the verdicts were reached, and which run is shown where only one can be."""
    confidence = {contest.verdict.confidence for contest in comparison.contests} or {0.95}
    looks = (
        "The number of looks while seeds are added was stored before the runs were trained, and each look uses its"
        " share of the error rate."
        if comparison.kept_margin
        else "The error rates assume a single look at a number of seeds fixed beforehand; whether seeds"
        " were added after an earlier comparison isn't recorded."
    )
    return [
        f"A contest is one arm against another. Two runs with the same seed form a pair. {pairs(comparison)} The tests"
        " use the difference within each pair (arm minus baseline) in bits per byte at the end of training; the"
        f" interval is Student's t at {100 * min(confidence):.4g} %.",
        "An arm is better or worse if both the paired t test and the sign-flip test (exact for up to"
        f" {EXACT_PAIRS} pairs) reject the hypothesis of no difference. It is equivalent if two one-sided t tests"
        " reject a difference as large as the margin. The p-values are corrected for the number of contests by"
        f" Holm's method. Anything else is inconclusive. {looks}",
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
    begun = any(arm.first.cfg.get("init_from") for arm in comparison.arms)
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


def _tuned(one: Tuning) -> str:
    tried = ", ".join(
        f"{units.rate(rate)} ({'failed' if units.finite(value) is None else units.bits(value)})"
        for rate, value in sorted(one.tried.items())
    )
    edge = (
        ", at the edge of the range that was tried; a better rate may lie outside it" if one.at_edge else ""
    )
    return f"tried {tried}; chose {units.rate(one.chosen)}{edge}."
