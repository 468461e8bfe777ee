"""The results at each look of each contest, as a table that the HTML and the Markdown report share."""

from __future__ import annotations

import math

from minllm.page import units
from minllm.study.comparison import Comparison, Contest
from minllm.study.report.measures import Table
from minllm.study.verdict import Look

ABOUT = (
    "p-values are those of each test as if this were the only look and the only contest. In brackets is what this look"
    " needs if a single contest is to have an error rate of 5 % over all looks (alpha spending); what the test of sign"
    " flips needs depends on the differences and isn't listed. The outcome is corrected for the number of contests"
    " (Holm). The intervals of a contest hold together: what one look excludes stays excluded."
)
HEAD = ("arm", "against", "pairs", "difference", "interval", "t test", "sign flips", "equivalence", "outcome")


def looks(comparison: Comparison) -> Table | None:
    """Return a row for each look of each contest; None before the first."""
    rows = [_row(contest, look) for contest in comparison.contests for look in contest.verdict.looks]
    return Table("Looks", ABOUT, HEAD, rows) if rows else None


def _row(contest: Contest, look: Look) -> list[str]:
    is_tested = math.isfinite(look.interval[0])  # by t tests, which need that no run diverged
    return [
        contest.arm.name,
        contest.baseline.name,
        str(look.pairs),
        units.signed(look.difference),
        units.between(look.interval),
        f"{units.p_value(look.p_t)} ({look.level:.2g})" if is_tested else units.NONE,
        units.p_value(look.p_sign_flip),
        f"{units.p_value(look.p_equivalence)} ({look.equivalence_level:.2g})" if is_tested else units.NONE,
        look.word,
    ]
