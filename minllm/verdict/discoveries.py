"""Online control of the false discovery rate: at which level the next idea is tested, given what was found before.

LORD++ (Ramdas, Yang, Wainwright and Jordan, 2017) in its asynchronous form (Zrnic, Ramdas and Jordan, 2021): ideas
take numbers 1, 2, 3, … as they start, and the level of idea t is

    α_t = w₀ γ_t + (α − w₀) γ_{t − d₁} + α Σ_{j ≥ 2} γ_{t − d_j}

where d_j is how many ideas had started when the j-th discovery was made, and γ is a decreasing sequence that sums
to 1. If no two ideas overlap, this is LORD++ itself. Every idea spends its level, whatever its outcome, and every
discovery allows more for those that follow, so that at most a share α of all discoveries is expected to be false.

ADDIS (Tian and Ramdas, 2019) spends less on hopeless ideas, but needs p-values that are uniformly conservative. Those
of a study that stops as soon as it is settled are not, and LORD++ needs only valid ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scipy.special import zeta

ALPHA = 0.05
"""The expected share of false discoveries among all discoveries."""

FIRST_WEALTH = ALPHA / 2
"""w₀, of which the ideas before the first discovery spend."""

DECAY = 1.6
"""γ_j is proportional to 1/j^1.6, as ADDIS has it: most of a wealth is spent on the next few ideas."""


def gamma(j: int) -> float:
    """Return the j-th term of a sequence that sums to 1; j begins at 1."""
    return float(j**-DECAY / zeta(DECAY))


def level(
    number: int,
    discoveries: Sequence[int],
    *,
    alpha: float = ALPHA,
    wealth: float = FIRST_WEALTH,
    share: Callable[[int], float] = gamma,
) -> float:
    """Return the level at which an idea is tested: it is a discovery if its p-value is at most this.

    Args:
        number: the idea's place in the order in which ideas start, from 1.
        discoveries: for each discovery made before this idea starts, how many ideas had started by then.
        alpha, wealth, share: the parameters α, w₀ and γ of the rule.

    Raises:
        ValueError: a discovery isn't earlier than the idea.
    """
    if number < 1 or not all(1 <= known < number for known in discoveries):
        raise ValueError(f"discoveries known at {list(discoveries)} can't precede idea {number}")
    first, *later = sorted(discoveries) or [None]
    spent = wealth * share(number)
    if first is not None:
        spent += (alpha - wealth) * share(number - first)
    return spent + alpha * sum(share(number - known) for known in later)
