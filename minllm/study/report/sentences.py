"""What a report says in sentences, on whichever page it's said."""

from __future__ import annotations

from minllm.page import units
from minllm.study import trust
from minllm.study.arms import Arm
from minllm.study.comparison import Comparison, Tuning
from minllm.study.facts import NEAR
from minllm.study.statistics import EXACT_PAIRS

NO_DIFFERENCES = "Nothing but the seeds."
NONE_LEFT_OUT = "None: every run that was found is in the comparison."
TUNED = "Learning rates were tuned, each arm's with the bits a byte that it reached:"


ABOUT_DIFFERENCES = (
    "A dash stands where an arm has no such setting, and null where it's set to null. All other settings that affect"
    " what is learnt are the same."
)
ABOUT_SD = "Figures are means over an arm's seeds; sd is the standard deviation of its bits a byte over them."
ABOUT_ARMS = f"{ABOUT_SD} A dash stands where a figure isn't known."
KEPT = "This margin was stored in the verdict's protocol before the runs that are compared were trained."
NOT_KEPT = (
    "This margin was given with the comparison: whether it was chosen before the results were seen"
    " isn't recorded."
)


def called(arm: Arm) -> str:
    """Return an arm's name, which a single one has none of."""
    return arm.name or "the only arm"


def introduction(comparison: Comparison) -> str:
    """Return what was compared, by what, and which differences matter."""
    seeds = sorted({len(arm.runs) for arm in comparison.arms})
    each = f"{seeds[0]} {'seeds' if seeds[0] != 1 else 'seed'}"
    each = f"{each} each" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    arms = f"{len(comparison.arms)} arms" if len(comparison.arms) > 1 else "One arm"
    return (
        f"{arms} with {each}, measured in bits a byte of held-out text: less is better."
        f" A difference of up to {units.bits(comparison.margin_bpb)} bits a byte ({100 * comparison.margin:.3g} % of"
        f" the baseline, {called(comparison.baseline)}) counts as too small to matter."
        f" {KEPT if comparison.kept_margin else NOT_KEPT}"
    )


def warnings(comparison: Comparison) -> list[str]:
    """Return what may change the answer, and is said before anything else is."""
    found = trust.warnings(comparison.arms)
    edges = [name for name, one in comparison.tuning.items() if one.at_edge]
    if not edges:
        return found
    return [
        *found,
        f"The learning rate of {' and of '.join(edges)} lies at an edge of what was tried, so a better one may lie"
        " beyond and change the answer. Try more: search.rates=[…] in another verdict (sweep.name=<name>).",
    ]


def equal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if fact.equal]
    return f"Held equal: {'; '.join(facts)}." if facts else "Nothing was held equal."


def unequal(comparison: Comparison) -> str:
    facts = [f"{fact.what}, {fact.said}" for fact in comparison.facts if not fact.equal]
    return f"Not equal: {'; '.join(facts)}." if facts else "Nothing that was looked at was unequal."


def noise(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm that was held against itself."""
    return [
        f"Two runs of {called(one.arm)} that differ in nothing but their seed lie within"
        f" {units.bits(one.floor)} bits a byte of each other, 95 times in a hundred"
        f" ({len(one.arm.runs)} seeds). Held against itself: {one.verdict.word}. "
        + " ".join(filter(None, [one.verdict.why, one.verdict.settling]))
        if one.floor is not None
        else f"{called(one.arm)} has a single seed, so how far its runs lie apart is unknown."
        for one in comparison.noise
    ]


def tuning(comparison: Comparison) -> list[str]:
    """Return a sentence for each arm whose learning rate was searched."""
    return [f"{name}: {_tuned(one)}" for name, one in comparison.tuning.items()]


def left_out(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the folder of each run that isn't compared, and why."""
    return [(str(one.folder), one.why) for one in comparison.left_out]


def repeating(comparison: Comparison) -> list[str]:
    """Return what to mind where the last line to type names the runs' folders."""
    if comparison.commands:
        return []
    return ["If you train the runs again, name their new folders in the last line."]


def judged(comparison: Comparison) -> list[str]:
    """Return how the words were found, and which run is shown where only one can be."""
    confidence = {contest.verdict.confidence for contest in comparison.contests} or {0.95}
    looks = (
        "How often it would be looked at while seeds are added was stored before the runs were trained, and each look"
        " is held to its share of the error rate."
        if comparison.kept_margin
        else "The error rates are those of a single look at a number of seeds that was chosen before: whether seeds"
        " were added after an earlier comparison isn't recorded."
    )
    return [
        f"A contest is one arm against another. Runs of the same seed are a pair. {pairs(comparison)} What is judged is"
        " the difference within each pair, the arm less the baseline, in bits a byte at the end of training; the"
        " interval is Student's t at"
        f" {100 * min(confidence):.4g} %.",
        "An arm is called better or worse where both the paired t test and the sign-flip test (all flips up to"
        f" {EXACT_PAIRS} pairs) exclude that there is no difference. It is called equivalent where two one-sided t"
        " tests exclude a difference as large as the margin. The p-values are corrected"
        f" for the number of contests by Holm's method. Anything else is inconclusive. {looks}",
        f"Where one run of an arm is shown, such as its texts, it is that of seed {comparison.shared_seed}: the first"
        " seed that most arms have, whatever its loss. Where two runs were of the same arm and seed, the later one"
        f" counts. Amounts within {100 * NEAR:g} % of each other are called equal.",
    ]


def pairs(comparison: Comparison) -> str:
    """Return what the two runs of a pair have in common, as far as it's known."""
    unequal = {fact.what for fact in comparison.facts if not fact.equal}
    settings = sorted(unequal & {"data", "tokenizer", "batch size", "objective"})
    code = sorted(unequal & {"version of minllm", "torch"})
    begun = any(arm.first.cfg.get("init_from") for arm in comparison.arms)
    weights = (
        "Some begin with the weights of another run (init_from)."
        if begun
        else "Their initial weights are drawn from the same random numbers wherever both have a parameter of the same"
        " name and shape."
    )
    batches = (
        f"They don't see the same batches, because their settings differ ({', '.join(settings)})."
        if settings
        else "Their settings give both the same batches in the same order."
    )
    other = (
        f" Their code isn't known to be the same ({', '.join(code)}), which may change either."
        if code
        else ""
    )
    return f"{weights} {batches}{other}"


def _tuned(one: Tuning) -> str:
    tried = ", ".join(
        f"{units.rate(rate)} ({'failed' if units.finite(value) is None else units.bits(value)})"
        for rate, value in sorted(one.tried.items())
    )
    edge = ", at an edge of what was tried: a better one may lie beyond" if one.at_edge else ""
    return f"tried {tried}, and took {units.rate(one.chosen)}{edge}."
