"""How many ideas a ledger finds, how many of them falsely, and how many pairs its verdicts take, in simulated ledgers.

`python -m tests.simulate_ledger` prints the table of docs/ledger.md, which takes about two minutes of CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from minllm.study.boundaries import LEVELS, Floats, SignFlips, boundary, sequential_p, statistic
from minllm.verdict.discoveries import level
from tests.simulate_verdicts import ALPHA, DIFFERENCES, LOOKS, after, moments, row, sample

LEDGERS = 300
EFFECTS: Mapping[str, float] = {"equal": 0.0, "worse": 0.5, "better": -1.0}  # in sd of a pair's difference
RULES = ("each on its own", "LORD++ without later looks", "LORD++")


@dataclass(frozen=True)
class Study:
    """A verdict on one idea.

    pairs: until it is settled or futile on its own
    later: if it is better on its own, the p-values among all ideas at that look and those after it
    """

    pairs: int
    later: Sequence[float] = ()


@dataclass
class Tally:
    found: int = 0
    false: int = 0
    pairs: int = 0


def p_overall(study: Floats) -> list[float]:
    """Return at each look what `verdicts` has as p_overall."""
    looks = np.array(LOOKS)
    of_t, of_signs = [], SignFlips(study, LOOKS, LOOKS)
    for pairs in LOOKS:
        values = (each[0] for each in moments(study[None, :pairs]))
        of_t.append(2 * float(stdtr(pairs - 1, -abs(statistic(pairs, *values)))))
    rejected = {}
    for tried in LEVELS:
        both = np.array(of_t) <= boundary(LOOKS, tried, 2), of_signs.rejections(len(looks) - 1, tried)
        rejected[tried] = np.logical_and(*(np.maximum.accumulate(each) for each in both))
    found = [
        sequential_p(dict(zip(rejected, by_look)).__getitem__, LEVELS, ALPHA)
        for by_look in zip(*rejected.values())
    ]
    found[-1] = min(found[-1], max(of_t[-1], of_signs.p_value(len(looks) - 1)))
    return [min(1.0, 2 * p) for p in found]


def studies(effect: float, count: int) -> list[Study]:
    drawn = sample(DIFFERENCES["normal"], effect, count, seed=7)
    judged, found = after(drawn, 0.1), []
    for study, pairs, claim in zip(drawn, judged.pairs.astype(int), judged.claims):
        found.append(Study(pairs, p_overall(study)[LOOKS.index(pairs) :] if claim == -1 else ()))
    return found


def ledger(kinds: Sequence[str], ideas: Sequence[Study], rule: str) -> Tally:
    """Judge ideas one after the other."""
    tally, discoveries = Tally(), []
    for number, (kind, idea) in enumerate(zip(kinds, ideas), 1):
        needed = ALPHA if rule == RULES[0] else level(number, discoveries)
        tries = idea.later if rule == RULES[2] else idea.later[:1]
        holds = next((at for at, p in enumerate(tries) if p <= needed), None)
        if rule == RULES[0]:
            holds = 0 if idea.later else None
        last = max(0, len(tries) - 1)
        tally.pairs += LOOKS[LOOKS.index(idea.pairs) + (last if holds is None else holds)]
        if holds is not None:
            discoveries.append(number)
            tally.found += 1
            tally.false += kind != "better"
    return tally


def main(count: int = 600) -> None:
    pools = {kind: studies(effect, count) for kind, effect in EFFECTS.items()}
    shown = ["false among found", "better ones found", "a false one", "false ones", "pairs"]
    row(["ideas", "better", "worse", "", *shown])
    row(["---"] * 9)
    for ideas, better, worse in ((100, 0, 0), (100, 0, 40), (30, 6, 12), (60, 6, 24)):
        kinds = np.repeat(list(EFFECTS), (ideas - better - worse, worse, better))
        for rule in RULES:
            random, tallies = np.random.default_rng(8), []
            for _ in range(LEDGERS):
                random.shuffle(kinds)
                tried = [pools[kind][random.integers(count)] for kind in kinds]
                tallies.append(ledger(kinds, tried, rule))
            shares = [
                np.mean([each.false / max(1, each.found) for each in tallies]),
                np.mean([(each.found - each.false) / better for each in tallies]) if better else np.nan,
                np.mean([each.false > 0 for each in tallies]),
            ]
            false = np.mean([each.false for each in tallies])
            pairs = np.mean([each.pairs for each in tallies]) / ideas
            row([str(ideas), str(better), str(worse), rule, *(f"{100 * share:.1f} %" for share in shares),
                 f"{false:.2f}", f"{pairs:.1f}"])  # fmt: skip


if __name__ == "__main__":
    main()
