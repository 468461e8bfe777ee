"""The pairs of two families that form one ladder.

With several sizes and numbers of tokens these are the pairs with the same tokens, or with the same tokens per
parameter; or all of them, if there are several sizes at each of several budgets of FLOPs (IsoFLOP).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minllm.page import units
from minllm.study.arms import Arm

APART = 0.05
"""Up to this relative distance, two sizes or numbers of tokens are the same."""
LEAST_RUNGS = 3

Pair = tuple[Arm, Arm]


@dataclass(frozen=True)
class Series:
    """Arms of two families at several sizes, baseline first.

    tokens, tokens_per_param: what distinguishes these pairs from other series of the same families; both are None if
        there is no other
    budgets: of IsoFLOP, the pairs with the same FLOPs, the fewest first; else none
    """

    pairs: Sequence[Pair]
    tokens: float | None = None
    tokens_per_param: float | None = None
    budgets: Sequence[Sequence[Pair]] = ()

    @property
    def label(self) -> str:
        if self.tokens is not None:
            return f"{units.count(self.tokens)} tokens"
        return f"{self.tokens_per_param:.3g} tokens per parameter" if self.tokens_per_param else ""


def series_of(pairs: Sequence[Pair]) -> list[Series]:
    """Return the series among pairs, that with the fewest tokens first; those of fewer than three sizes are left out.

    Pairs of several sizes and numbers of tokens are sorted by FLOPs, tokens per parameter or tokens, whichever leaves
    out the fewest of them.
    """
    by_flops, by_ratio, by_tokens = (
        [group for group in grouped(pairs, value_of) if len(group) >= LEAST_RUNGS]
        for value_of in (flops_of, tokens_per_param_of, tokens_of)
    )
    by_flops = by_flops if len(by_flops) >= LEAST_RUNGS else []
    if not by_flops and len(grouped(pairs, params_of)) == len(pairs):
        return [Series(pairs)] if len(pairs) >= LEAST_RUNGS else []
    fewest_left_out = max((by_flops, by_ratio, by_tokens), key=lambda groups: sum(map(len, groups)))
    if by_flops and fewest_left_out is by_flops:
        return [Series([pair for group in by_flops for pair in group], budgets=by_flops)]
    if fewest_left_out is by_ratio:
        return [Series(group, tokens_per_param=tokens_per_param_of(group[-1][0])) for group in by_ratio]
    return [Series(group, tokens=tokens_of(group[0][0])) for group in by_tokens]


def grouped(pairs: Sequence[Pair], value_of: Callable[[Arm], float]) -> list[list[Pair]]:
    """Group pairs by a value of their first arm, the smallest value first."""
    groups: list[list[Pair]] = []
    for pair in sorted(pairs, key=lambda pair: value_of(pair[0])):
        if groups and value_of(pair[0]) <= value_of(groups[-1][0][0]) * (1 + APART):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return [sorted(group, key=lambda pair: params_of(pair[0])) for group in groups]


def are_close(one: float, other: float) -> bool:
    return abs(math.log(one / other)) <= math.log1p(APART)


def params_of(arm: Arm) -> float:
    return float(arm.first.summary["params"])


def tokens_of(arm: Arm) -> float:
    return float(arm.first.summary["tokens"])


def tokens_per_param_of(arm: Arm) -> float:
    return tokens_of(arm) / params_of(arm)


def flops_of(arm: Arm) -> float:
    """Return the FLOPs of training of one run."""
    return tokens_of(arm) * float(arm.first.summary["flops_per_token"])
