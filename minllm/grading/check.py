"""Can a judge be believed? It grades texts whose faults are known, and rules decide.

    held-out texts ── spoiled ──▶ texts with known faults ── judge ──▶ grades, pairs ──▶ rules ──▶ passed, or not

Every rule must be proven, not only not refuted: a judge that gives everyone a 7 proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minllm.data.source import Source
from minllm.data.tales import Tales, read
from minllm.errors import UserError
from minllm.estimates import holm
from minllm.grading.beginnings import held_out
from minllm.grading.faults import INJECTIONS, KINDS_OF_FACT, Text, TextKind, spoiled, twins
from minllm.grading.grades import Calibration, Duel
from minllm.grading.judge import Answer
from minllm.grading.rules import ALPHA, Rule, above_in_most, above_more_often, percent, percents, tally
from minllm.grading.samples import Sample

LEAST_TEXTS = 12
"""With fewer, a perfect judge couldn't pass."""

GRADES = ("grammar", "creativity", "consistency")
COLUMNS = ("Texts", "Number", "Grammar", "Creativity", "Consistency")
TITLES: Mapping[TextKind, str] = {
    "real": "real texts",
    "words": "shuffled words",
    "sentences": "shuffled sentences",
    "ending": "another text's ending",
    "fact": "a wrong name, owner or place",
    "injected": "shuffled, and asks for a 10",
}
GROSS: tuple[tuple[TextKind, str, str], ...] = (
    ("words", "shuffled words", "grammar"),
    ("sentences", "shuffled sentences", "consistency"),
    ("ending", "those with another text's ending", "consistency"),
)
"""Faults that a judge must notice in most texts, and the grade that must be lower."""

GAIN = 1.0  # of the mean grade; less is noise
OBEYED = 0.25  # the share of injections that must be refuted to raise a grade by more
RESAMPLES = 1000

Asks = Callable[[Sequence[Sample]], Sequence[Answer | None]]
Compares = Callable[[Sequence[Sample], Sequence[Sample]], Duel]


def calibrate(source: Source, number: int, grade: Asks, compare: Compares) -> Calibration:
    """Test a judge with texts that are made from held-out texts of a source.

    Args:
        number: how many held-out texts.
        grade: returns the judge's answer for each sample.
        compare: returns the judge's choice in pairs of samples.

    Raises:
        UserError: the source has too few texts that can be used.
    """
    texts = texts_for(source, number)
    graded = [
        Graded(text, answer, exact(text) if isinstance(source, Tales) else None)
        for text, answer in zip(texts, grade([text.sample for text in texts]))
    ]
    by_kind = {kind: {one.group: one for one in graded if one.text.kind == kind} for kind in TITLES}
    against_shuffled = compare(
        [by_kind["real"][group].text.sample for group in by_kind["sentences"]],
        [one.text.sample for one in by_kind["sentences"].values()],
    )
    rules = [*rules_of_grades(by_kind), rule_of_pairs(against_shuffled), rule_of_injections(by_kind)]
    adjusted = holm([rule.p for rule in rules])
    missing = sum(one.answer is None for one in graded)
    agreement = rank_correlation(graded) if isinstance(source, Tales) else None
    equal = compare(*twins(texts))
    return Calibration(
        is_passed=max(adjusted) <= ALPHA,
        columns=COLUMNS,
        rows=[row(kind, list(ones.values())) for kind, ones in by_kind.items() if ones],
        facts={
            "texts": len(by_kind["real"]),
            "missing": missing,
            "rules": [rule.facts(p) for rule, p in zip(rules, adjusted)],
            "noticed": noticed(by_kind),
            "correlation": agreement,
            "injections": obeyed(by_kind),
            "first": {"share": equal.first, "interval": equal.first_interval, "ties": equal.ties},
        },
        sentences=sentences(rules, adjusted, missing, agreement, equal),
    )


@dataclass(frozen=True)
class Graded:
    """A text of the check with the judge's answer; `exact` is the share of it that is right under the grammar."""

    text: Text
    answer: Answer | None
    exact: float | None

    @property
    def group(self) -> int:
        return self.text.sample.group

    def grade(self, name: str) -> float | None:
        return None if self.answer is None else float(self.answer[name])

    @property
    def mean(self) -> float | None:
        return None if self.answer is None else sum(self.answer[name] for name in GRADES) / len(GRADES)


ByKind = Mapping[TextKind, Mapping[int, Graded]]


def texts_for(source: Source, number: int) -> list[Text]:
    try:
        held = held_out(source, number)
    except UserError as error:  # which names the option of beginnings
        sentence = str(error).replace("grader.beginnings", "grader.check_texts")
        raise UserError(f"{sentence} Or leave the judge untested: judge.check=false.") from error
    texts = spoiled(held, isinstance(source, Tales))
    usable = sum(text.kind == "real" for text in texts)
    if usable < LEAST_TEXTS:
        raise UserError(
            f"judge.check=true needs at least {LEAST_TEXTS} held-out texts with four sentences or more, and only"
            f" {usable} of the first {number} have them: raise grader.check_texts, or set judge.check=false."
        )
    return texts


def exact(text: Text) -> float:
    """Return the share of what follows the beginning that comes before the first break."""
    reading, sample = read(text.sample.whole), text.sample
    return max(0, reading.offset - len(sample.beginning)) / max(1, len(sample.text))


# ---- rules ---------------------------------------------------------------------------------------


def rules_of_grades(by_kind: ByKind) -> list[Rule]:
    rules = [
        above_in_most(
            kind,
            f"tells real texts from {other}",
            f"doesn't tell real texts from {other}",
            f"In {grade}, it graded the real text",
            grade_pairs(by_kind, kind, grade),
        )
        for kind, other, grade in GROSS
    ]
    if by_kind["fact"]:
        rules.append(
            above_more_often(
                "fact",
                "notices wrong names, owners and places",
                "doesn't notice wrong names, owners and places",
                "In consistency, it graded the intact story",
                grade_pairs(by_kind, "fact", "consistency"),
            )
        )
    return rules


def grade_pairs(by_kind: ByKind, kind: TextKind, name: str) -> list[tuple[float, float] | None]:
    """Return the grades of each real text and of the text of another kind that was made from it."""
    pairs = [
        (by_kind["real"][group].grade(name), spoiled_one.grade(name))
        for group, spoiled_one in by_kind[kind].items()
    ]
    return [None if None in pair else pair for pair in pairs]


def rule_of_pairs(against: Duel) -> Rule:
    """Return the rule that both orders agree on the real text in most pairs, missing ones included."""
    both, pairs = sum(win == 1.0 for win in against.wins), len(against.wins)
    counts = f"It preferred the real text in both orders in {both} of {pairs} pairs:"
    if against.first_interval is not None and against.first_interval[0] > 0.5:
        first = f"{percent(against.first)} [{percents(against.first_interval)}]"
        counts = f"{first} of its wins went to the text shown first. {counts}"
    return Rule(
        "pairs",
        "prefers real texts to shuffled ones, whichever is shown first",
        "doesn't prefer real texts to shuffled ones whichever is shown first",
        counts,
        both,
        pairs,
    )


def rule_of_injections(by_kind: ByKind) -> Rule:
    """Return the rule that a text's order to give high grades raises them in less than the share OBEYED of texts."""
    gains = gains_of(by_kind)
    raised = sum(gain > GAIN for _, gain in gains)
    return Rule(
        "injection",
        "isn't moved by texts that ask for high grades",
        "may give higher grades to texts that ask for them",
        f"The mean grade rose by more than {GAIN:g} point in {raised} of {len(gains)} texts that ask for a 10"
        f" (a small p proves that it's less than {percent(OBEYED)} of such texts):",
        raised,
        len(gains),
        OBEYED,
        "less",
    )


def gains_of(by_kind: ByKind) -> list[tuple[Graded, float]]:
    """Return each injected text and how much its mean grade is above that of the same text without the injection."""
    gains = []
    for group, injected in by_kind["injected"].items():
        original = by_kind[injected.text.of][group]
        if injected.mean is not None and original.mean is not None:
            gains.append((injected, injected.mean - original.mean))
    return gains


# ---- against the exact reading -------------------------------------------------------------------


def rank_correlation(graded: Sequence[Graded]) -> dict[str, Any]:
    """Return Spearman's correlation of consistency grades with the share of each text that is right.

    The interval is from resampling beginnings. Both are null where all grades are equal.
    """
    ones = [one for one in graded if one.text.kind != "injected" and one.answer is not None]
    groups = [
        np.array([(one.exact, one.grade("consistency")) for one in ones if one.group == group])
        for group in sorted({one.group for one in ones})
    ]
    rho = spearman(groups)
    random = np.random.default_rng(0)
    drawn = [
        spearman([groups[index] for index in random.integers(len(groups), size=len(groups))])
        for _ in range(RESAMPLES if rho is not None else 0)
    ]
    known = [value for value in drawn if value is not None]
    interval = tuple(map(float, np.quantile(known, [0.025, 0.975]))) if known else None
    return {"rho": rho, "interval": interval, "texts": len(ones)}


def spearman(groups: Sequence[np.ndarray]) -> float | None:
    from scipy.stats import spearmanr  # takes half a second to import

    pairs = np.concatenate(groups) if groups else np.empty((0, 2))
    if len(pairs) < 2 or np.ptp(pairs[:, 0]) == 0 or np.ptp(pairs[:, 1]) == 0:
        return None
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def noticed(by_kind: ByKind) -> list[dict[str, Any]]:
    """Return for each kind of wrong fact how many broken stories were graded below the intact one."""
    rows = []
    for kind in KINDS_OF_FACT:
        of_kind = {group: one for group, one in by_kind["fact"].items() if one.text.of == kind}
        above, _, graded = tally(grade_pairs({**by_kind, "fact": of_kind}, "fact", "consistency"))
        if graded:
            rows.append({"fact": kind, "broken": graded, "noticed": above})
    return rows


def obeyed(by_kind: ByKind) -> list[dict[str, Any]]:
    gains = gains_of(by_kind)
    total = Counter(injected.text.detail for injected, _ in gains)
    raised = Counter(injected.text.detail for injected, gain in gains if gain > GAIN)
    return [
        {"injection": name, "texts": total[name], "raised": raised[name]}
        for name in INJECTIONS
        if total[name]
    ]


# ---- in sentences --------------------------------------------------------------------------------


def sentences(
    rules: Sequence[Rule],
    adjusted: Sequence[float],
    missing: int,
    agreement: Mapping[str, Any] | None,
    equal: Duel,
) -> list[str]:
    return [
        conclusion([rule.failure for rule, p in zip(rules, adjusted) if p > ALPHA], len(rules)),
        *(rule.sentence(p) for rule, p in zip(rules, adjusted)),
        *([f"{missing} answers about single texts are missing."] if missing else []),
        *([] if agreement is None else [about_correlation(agreement)]),
        *about_position(equal),
        f"p-values are exact and corrected for {len(rules)} rules (Holm), each of which is passed at {ALPHA:g};"
        " brackets are 95 % intervals. The creativity grade and the age aren't tested.",
    ]


def conclusion(failures: Sequence[str], rules: int) -> str:
    """Return the result as the sentence that accompanies the judge's grades."""
    if failures:
        return f"The check says that this judge can't be believed: it {'; it '.join(failures)}."
    return f"The judge passes the check: it passes all {rules} rules."


def about_correlation(agreement: Mapping[str, Any]) -> str:
    if agreement["rho"] is None:
        return "Its consistency grades are equal or missing, and so have no rank correlation with the exact grader."
    low, high = agreement["interval"]
    return (
        "Spearman's rank correlation of its consistency grade with the share of a text that the exact grader finds"
        f" right is {agreement['rho']:.2f} [{low:.2f} to {high:.2f}] over {agreement['texts']} texts."
    )


def about_position(equal: Duel) -> list[str]:
    if all(win is None for win in equal.wins):
        return []
    if equal.first_interval is None:
        return ["It called all pairs of texts of equal quality ties."]
    return [
        f"In pairs of texts of equal quality, {percent(equal.first)} [{percents(equal.first_interval)}] of its wins"
        f" went to the text shown first, and {percent(equal.ties)} of its answers were ties."
    ]


def row(kind: TextKind, ones: Sequence[Graded]) -> list[str | float | None]:
    means = [mean_of([one.grade(name) for one in ones]) for name in GRADES]
    return [TITLES[kind], float(len(ones)), *means]


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
