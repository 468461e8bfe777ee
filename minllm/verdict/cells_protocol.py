"""The protocol of arms that are tuned and trained on each of several data, as a profile and a ranking do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from minllm.errors import UserError
from minllm.schema.checking import fits
from minllm.schema.options import Count, Natural, Positive
from minllm.schema.overrides import key_of
from minllm.verdict.protocol import FIRST_TUNING_SEED, OfArms, refuse_close


@dataclass(frozen=True, kw_only=True)
class CellsProtocol(OfArms):
    """What the `search:` sections of a profile and of a ranking have in common.

    seeds: how many seeds an arm is trained with on each of the data after it was tuned
    rates: the learning rates that are tried, as multiples of optim.lr
    tuning_runs: the most tuning runs of an arm on one of the data
    tuning_seeds: the seeds of the tuning runs; everything is tried with the first, and the best values with all
    """

    seeds: Count
    rates: list[Positive]
    tuning_runs: Count
    tuning_seeds: list[Natural]

    numbers = "search.seeds"
    limits = "search.seeds and search.tuning_runs"
    different: ClassVar[Sequence[str]] = ("rates", "tuning_seeds")
    """The options that are lists of different numbers."""

    @property
    def planned(self) -> tuple[int, str]:
        """How many runs the tuning begins with, and what they try, in words."""
        return len(self.rates), "learning rates in search.rates"

    def __post_init__(self):
        for key in self.different:
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise UserError(f"search.{key} must have one or more different numbers, and not be {values}.")
        refuse_close(self.rates)
        if any(seed < FIRST_TUNING_SEED for seed in self.tuning_seeds):
            raise UserError(
                f"search.tuning_seeds must be {FIRST_TUNING_SEED} or above: the {self.noun} uses the seeds below."
            )
        if self.seeds > FIRST_TUNING_SEED:
            raise UserError(f"search.seeds can't exceed {FIRST_TUNING_SEED}, and is {self.seeds}.")
        runs, what = self.planned
        if self.tuning_runs < runs:
            raise UserError(f"search.tuning_runs={self.tuning_runs} is too few to try {runs} {what}.")


def named(section: object, key: str, example: str) -> dict[str, list[str]]:
    """Return the words of each entry, by its name: the first word, and the others with the last parts of their keys."""
    if not section or not fits(section, list[str]) or not all(entry.split() for entry in section):
        raise UserError(f"{key} must be a list, such as '{key}={example}', not {section}.")
    lists = [entry.split() for entry in section]
    names = [" ".join([words[0], *map(short, words[1:])]) for words in lists]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key} has {name} twice: leave one out.")
    return dict(zip(names, lists))


def options_named(section: object, key: str, prefix: str, example: str) -> dict[str, list[str]]:
    """Return the overrides of each entry, by its name; `prefix` makes an override of an option alone."""
    return {
        name: [word if "=" in word else f"{prefix}{word}" for word in words]
        for name, words in named(section, key, example).items()
    }


def short(word: str) -> str:
    """Return an override with the last part of its key: window=32 of model.attn.mask.window=32."""
    return f"{re.split('[./]', key_of(word))[-1]}={word.partition('=')[2]}" if "=" in word else word
