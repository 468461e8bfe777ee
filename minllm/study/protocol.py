"""How a verdict is come to, and between which arms: all of it is chosen before the first run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.options import Count, FolderName, Natural, Positive, Share
from minllm.study.arms import ABSENT, identity, learnt_from
from minllm.study.comparison import ALL, Tuning
from minllm.validation import fits
from minllm.validation import words as said
from minllm.words import is_seed

FIRST_TUNING_SEED = 1000
"""Seeds below this are the verdict's; learning rates are tuned on this one and those above."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What `search:` says of a verdict.

    equal: what the arms have as much of as the first, by the options of size; null leaves each as it is
    rates: learning rates that each arm tries, as multiples of its optim.lr
    tuning_seeds: the seeds of those runs; a rate counts by its mean over them
    looks: how many pairs of seeds there are when the verdict is looked at
    margin: the share of the baseline's bits a byte by which a difference doesn't matter
    baseline: the arm that the others are held against; all: every arm against every other
    aa: hold each arm against itself too; with a single arm, nothing else
    prompts, stories: what the report shows the arms writing and reading
    """

    equal: Literal["params", "params_active", "params_non_embedding", "flops_per_token", "state_bytes"] | None
    rates: list[Positive]
    tuning_seeds: list[Natural]
    looks: list[Count]
    margin: Share
    baseline: str | None
    aa: bool
    prompts: list[str]
    stories: Natural

    def __post_init__(self):
        if not self.looks or sorted(set(self.looks)) != list(self.looks):
            raise UserError("search.looks must be numbers of pairs that grow, such as [8,12,18].")
        if self.rates and not self.tuning_seeds:
            raise UserError(
                "search.tuning_seeds has no seed to try learning rates on: give it one, or search.rates=[]."
            )
        if self.looks[-1] * self.runs_of_a_pair > FIRST_TUNING_SEED:
            raise UserError(
                f"search.looks may end at {FIRST_TUNING_SEED // self.runs_of_a_pair} pairs, and this ends at"
                f" {self.looks[-1]}."
            )
        for key in ("rates", "tuning_seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise UserError(f"search.{key} names the same twice: {getattr(self, key)}. Leave one out.")
        if any(seed < FIRST_TUNING_SEED for seed in self.tuning_seeds):
            raise UserError(
                f"search.tuning_seeds must be {FIRST_TUNING_SEED} or above: the verdict never sees those."
            )

    @property
    def runs_of_a_pair(self) -> int:
        """How many seeds of one arm it takes."""
        return 2 if self.aa else 1

    def pairs_in(self, arms: Iterable[Sequence[FrozenTrial]]) -> int:
        """Return how many pairs have ended: from the first on, those whose seeds every arm was trained with."""
        ended = [{trial.params["seed"] for trial in trials if trial.state.is_finished()} for trials in arms]
        seeds = next(seed for seed in itertools.count() if not all(seed in one for one in ended))
        return seeds // self.runs_of_a_pair


def arms_in(section: Mapping[str, Any], protocol: Protocol) -> dict[str, list[str]]:
    """Return the words of each arm that has some. UserError if they aren't words, or there are too few arms."""
    arms = {str(name): words for name, words in section.items() if words is not None}
    for name, words in arms.items():
        if not fits(name, FolderName):
            raise UserError(f"The name of an arm must be {said(FolderName)}, not {name!r}.")
        if not fits(words, list[str]) or not all("=" in word for word in words):
            raise UserError(
                f"arms.{name} must be a list of words for the command line: 'arms.{name}=[model/attn=mqa]'."
            )
        if any(map(is_seed, words)):
            raise UserError(f"arms.{name} has a seed, and all arms are trained with the same: leave it out.")
    if len(arms) < 2 and not protocol.aa:
        raise UserError(
            "A verdict needs two arms: 'arms.b=[model/attn=mqa]' against arms.a, which is the default model unless"
            " you say. To hold one arm against itself, type search.aa=true."
        )
    if protocol.baseline not in (None, ALL, *arms):
        raise UserError(f"search.baseline={protocol.baseline} is no arm. Choose {', '.join(arms)}, or all.")
    return {name: list(words) for name, words in arms.items()}


def refuse_own_seeds(typed: Sequence[str]) -> None:
    if any(map(is_seed, typed)):
        raise UserError(
            "A verdict chooses its seeds: leave seed= out. How many there are is search.looks, and those that learning"
            " rates are tuned on are search.tuning_seeds."
        )


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    """Raise UserError if a protocol isn't what it was when the verdict began."""
    for key, value in now.items():
        if key not in ("prompts", "stories") and before.get(key) != value:
            asked = key if key == "arms" else f"search.{key}"
            raise UserError(
                f"The verdict '{name}' began with {asked}={before.get(key)}, and what is chosen after a look"
                " proves nothing. Go on with that, or begin another: sweep.name=<name>."
            )


def refuse_the_same(cfgs: Mapping[str, DictConfig]) -> None:
    """Raise UserError if two arms are configured the same, however that was typed."""
    known: dict[tuple[Any, ...], str] = {}
    for name, cfg in cfgs.items():
        other = known.setdefault(identity(cfg), name)
        if other != name:
            raise UserError(
                f"arms.{other} and arms.{name} are the same: nothing that affects what is learnt differs between them."
                " Change one of them, or type search.aa=true with a single arm to compare it with itself."
            )
    from minllm.unused import computes_the_same  # which imports torch

    for (name, cfg), (other, another) in itertools.combinations(cfgs.items(), 2):
        if is_of_model_only(cfg, another) and computes_the_same(cfg, another):
            raise UserError(
                f"arms.{name} and arms.{other} compute the same: what differs between them changes nothing in the"
                " model. Change one of them."
            )


def is_of_model_only(one: DictConfig, other: DictConfig) -> bool:
    """Whether all that differs between two configurations makes the model."""
    values, others = learnt_from(one), learnt_from(other)
    differ = [key for key in {*values, *others} if values.get(key, ABSENT) != others.get(key, ABSENT)]
    return all(key.startswith(("model.", "norm.")) for key in differ)


def refuse_same_results(tuning: Mapping[str, Tuning]) -> None:
    """Raise UserError if two arms had exactly the same loss at each of their rates: they compute the same."""
    found = [(name, one.tried) for name, one in tuning.items()]
    for (name, tried), (other, others) in itertools.combinations(found, 2):
        if tried == others and None not in tried.values():
            raise UserError(
                f"arms.{name} and arms.{other} reached exactly the same loss with each learning rate, so what differs"
                " between them changes nothing that is computed. Change one of them."
            )
