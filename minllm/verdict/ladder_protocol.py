"""The protocol of a ladder and its rungs, all of which is fixed before the first run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.options import Count, Positive
from minllm.study.scaling.ladders import LEAST_PAIRS, LEAST_RUNGS
from minllm.study.tuning import RATE
from minllm.verdict.protocol import FIRST_TUNING_SEED, ArmsProtocol

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

LEAST_STEP = 1.2
"""The smallest factor between two rungs."""
TOKENS_PER_PARAM = 20.0
"""With `ladder.flops`, unless it is set (2203.15556)."""
FEW_TUNED, SOME_TUNED, MANY_RUNGS = 2, 3, 5


@dataclass(frozen=True, kw_only=True)
class LadderProtocol(ArmsProtocol):
    """The `search:` section of a ladder; see `ArmsProtocol`."""

    noun = "ladder"
    numbers = "ladder.pairs"
    limits = "ladder.pairs and search.tuning_runs"

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Train the ladder and report what becomes of the difference.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.ladder import climb

        if climb(sweeper, overrides) is False:
            raise NotSettled

    def __post_init__(self):
        super().__post_init__()
        if self.tune not in ([], [RATE]):
            raise UserError(
                f"A ladder tunes the learning rate alone: type search.tune=[{RATE}], or search.tune=[] for no tuning,"
                f" not {self.tune}."
            )


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The `ladder:` section.

    params: the parameters of every arm at each rung
    flops: or the FLOPs of training of the first arm at each rung, whose parameters and tokens the others get
    sizes: of each budget in flops, the sizes that are trained, as factors of the one that follows from tokens_per_param
    pairs: how many pairs of seeds are trained at each rung
    tuned: how many of the lowest rungs are tuned
    tokens: the tokens of each run
    tokens_per_param: the tokens of each run, in proportion to its parameters; of several such numbers, each run is
        trained with the largest, and read at the others by a decay of its own
    check: whether the difference at one rung above the ladder is predicted and then measured
    """

    params: list[Positive] | None
    flops: list[Positive] | None
    sizes: list[Positive] | None
    pairs: Count
    tuned: Count | None
    tokens: Positive | None
    tokens_per_param: Positive | list[Positive] | None
    check: bool

    def __post_init__(self):
        if (self.params is None) == (self.flops is None):
            raise UserError(
                "A ladder needs its rungs, as parameters or as FLOPs: type 'ladder.params=[2e5,4e5,8e5,1.6e6]' or"
                " 'ladder.flops=[1e12,4e12,1.6e13]'."
            )
        key = "ladder.params" if self.params else "ladder.flops"
        if len(self.rungs) < LEAST_RUNGS or any(
            high < LEAST_STEP * low for low, high in itertools.pairwise(self.rungs)
        ):
            raise UserError(
                f"{key} must be {LEAST_RUNGS} or more increasing sizes, each at least {LEAST_STEP} times the one"
                f" before, such as [2e5,4e5,8e5], not {self.rungs}."
            )
        if self.pairs > FIRST_TUNING_SEED:
            raise UserError(f"ladder.pairs can't exceed {FIRST_TUNING_SEED}.")
        if self.pairs * len(self.rungs) < LEAST_PAIRS:
            raise UserError(
                f"A trend needs {LEAST_PAIRS} pairs or more in all: type ladder.pairs=2, or more rungs."
            )
        if self.tuned is not None and self.tuned > len(self.rungs):
            raise UserError(f"ladder.tuned={self.tuned} is more than the {len(self.rungs)} rungs of {key}.")
        few = self.tokens_per_param == [] or any(
            high < LEAST_STEP * low for low, high in itertools.pairwise(self.ratios)
        )
        if few:
            raise UserError(
                "ladder.tokens_per_param must be a number, or several increasing ones, each at least"
                f" {LEAST_STEP} times the one before, such as [10,20,40], not {self.tokens_per_param}."
            )
        if self.sizes is not None:
            self._refuse_bad_sizes(self.sizes)
        if self.flops and len(self.ratios) > 1:
            raise UserError(
                "With ladder.flops the sizes follow from one number of tokens per parameter: type a single"
                " ladder.tokens_per_param, or ladder.params instead of ladder.flops."
            )
        if self.tokens is not None and (self.tokens_per_param is not None or self.flops):
            raise UserError(
                "ladder.tokens is the same number at each rung, so it can't be combined with ladder.tokens_per_param or"
                " ladder.flops: leave it out."
            )

    def _refuse_bad_sizes(self, sizes: list[float]) -> None:
        steps = list(itertools.pairwise(sizes))
        if len(sizes) < LEAST_RUNGS or any(high < LEAST_STEP * low for low, high in steps):
            raise UserError(
                f"ladder.sizes must be {LEAST_RUNGS} or more increasing factors, each at least {LEAST_STEP} times the"
                f" one before, such as [0.25,0.5,1,2,4], not {sizes}."
            )
        if not self.flops:
            raise UserError(
                "ladder.sizes are the sizes at each budget of FLOPs: type 'ladder.flops=[1e12,4e12,1.6e13]' instead of"
                " ladder.params, or leave ladder.sizes out."
            )
        if self.check:
            raise UserError("ladder.check can't be combined with ladder.sizes: leave one of them out.")

    @property
    def rungs(self) -> list[float]:
        return self.params or self.flops or []

    @property
    def step(self) -> float:
        """The factor between the two largest rungs, and from the largest to the check."""
        return self.rungs[-1] / self.rungs[-2]

    @property
    def n_tuned(self) -> int:
        few = SOME_TUNED if len(self.rungs) >= MANY_RUNGS else FEW_TUNED
        return few if self.tuned is None else self.tuned

    @property
    def ratios(self) -> list[float]:
        """Tokens per parameter, the fewest first; none if all rungs have the same tokens."""
        if self.tokens_per_param is None:
            return [TOKENS_PER_PARAM] if self.flops else []
        return self.tokens_per_param if isinstance(self.tokens_per_param, list) else [self.tokens_per_param]
