"""The protocol of a study of learning rates, all of which is fixed before the first run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.options import Count, Positive
from minllm.study.rates.curves import LEAST_RATES, MARGINS, Measure
from minllm.verdict.protocol import FIRST_TUNING_SEED, SET_BY_RATES, Equal, OfArms, refuse_close

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper


@dataclass(frozen=True, kw_only=True)
class RatesProtocol(OfArms):
    """The `search:` section of a study of learning rates.

    measure: the value of an arm with a seed, lower for better ones; see `minllm.study.rates.curves`
    equal: the quantity in which all arms are sized to match the first, at each size; null leaves their sizes alone
    rates: the learning rates, as multiples of each arm's optim.lr
    seeds: how many seeds each arm is trained with at each rate
    margin: differences below this count as equal, in bits per byte or octaves; null: that of the measure
    widths: values of model.dim at which each arm is trained, the smallest first
    sizes: or the overrides of each size, separated by spaces
    """

    measure: Measure
    equal: Equal
    rates: list[Positive]
    seeds: Count
    margin: Positive | None
    widths: list[Count] | None
    sizes: list[str] | None

    noun = "rate study"
    numbers = "search.seeds"
    limits = "search.rates and search.seeds"
    sets = SET_BY_RATES

    def __post_init__(self):
        if len(self.rates) < LEAST_RATES:
            raise UserError(f"search.rates must have {LEAST_RATES} or more numbers, and not be {self.rates}.")
        refuse_close(self.rates)
        if self.seeds > FIRST_TUNING_SEED:
            raise UserError(f"search.seeds can't exceed {FIRST_TUNING_SEED}, and is {self.seeds}.")
        if self.widths is not None and self.sizes is not None:
            raise UserError(
                "search.widths and search.sizes both say what the sizes are: leave one of them out."
            )
        if self.widths is not None and any(high <= low for low, high in itertools.pairwise(self.widths)):
            raise UserError(f"search.widths must increase, such as [64,128,256], and not be {self.widths}.")
        if len(set(self.size_words)) < len(self.size_words) or not all(map(str.split, self.size_words)):
            raise UserError(f"search.sizes must be different overrides, and not {self.sizes}.")
        if any("=" not in word for size in self.size_words for word in size.split()):
            raise UserError(
                "search.sizes must be overrides key=value, with spaces between those of one size, such as"
                f" [model.dim=64,model.dim=128 model.n_layers=4], and not {self.sizes}."
            )
        if self.measure == "shift" and len(self.size_words) < 2:
            raise UserError(
                "search.measure=shift compares the best rates of two or more sizes: type 'search.widths=[64,128,256]'."
            )
        if self.measure == "sensitivity" and self.size_words:
            raise UserError(
                "search.measure=sensitivity is of a single size: leave search.widths and search.sizes out, or type"
                " search.measure=shift."
            )

    @property
    def size_words(self) -> list[str]:
        """The overrides of each size, as text; none if there is a single size."""
        return self.sizes or [f"model.dim={width}" for width in self.widths or []]

    @property
    def own_margin(self) -> float:
        return MARGINS[self.measure] if self.margin is None else self.margin

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Train each arm at all rates, and write the report.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.rates import study_rates

        study = study_rates(sweeper, overrides)
        if study is not None and not study.is_answered:
            raise NotSettled
