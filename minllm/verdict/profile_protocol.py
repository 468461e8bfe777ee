"""The protocol of a profile, its mixers and its probes, all of which is fixed before the first run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.checking import fits
from minllm.schema.options import Count, Natural, NonNegative, Positive, Share
from minllm.schema.overrides import key_of
from minllm.verdict.protocol import FIRST_TUNING_SEED, Equal, OfArms, refuse_close

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

LAYOUTS = {"attn": "transformer", "rec": "recurrent"}
"""The layout in which an option of model/attn or model/rec is the only mixer, each followed by an MLP."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class ProfileProtocol(OfArms):
    """The `search:` section of a profile.

    equal: the quantity in which all mixers are sized to match the first, on each probe; null leaves their sizes alone
    solved: the accuracy at which a run ends, as a share of what is possible
    seeds: how many seeds a mixer is trained with on each probe after it was tuned
    rates: the learning rates that are tried, as multiples of optim.lr
    decays: the weight decays that are tried with each of them
    tuning_runs: the most tuning runs of a mixer on a probe
    tuning_seeds: the seeds of the tuning runs; everything is tried with the first, and the best values with all
    """

    equal: Equal
    solved: Share
    seeds: Count
    rates: list[Positive]
    decays: list[NonNegative]
    tuning_runs: Count
    tuning_seeds: list[Natural]

    noun = "profile"
    numbers = "search.seeds"
    limits = "search.seeds and search.tuning_runs"
    least_arms = 1
    sets = {
        "hydra.sweeper.n_trials": "whose runs are limited by {limits}",
        "hydra.sweeper.sampler": "which tries what search.rates and search.decays say",
        "sweep.pruner": "which trains every run until it has solved its probe or its steps are used up",
        "sweep.metric": "which compares val_accuracy",
        "sweep.keep_checkpoints": "which keeps none",
        "train.stop_at_accuracy": "which stops runs by search.solved",
    }

    def __post_init__(self):
        for key in ("rates", "decays", "tuning_seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise UserError(f"search.{key} must have one or more different numbers, and not be {values}.")
        refuse_close(self.rates)
        if any(seed < FIRST_TUNING_SEED for seed in self.tuning_seeds):
            raise UserError(
                f"search.tuning_seeds must be {FIRST_TUNING_SEED} or above: the profile uses the seeds below."
            )
        if self.seeds > FIRST_TUNING_SEED:
            raise UserError(f"search.seeds can't exceed {FIRST_TUNING_SEED}, and is {self.seeds}.")
        planned = len(self.rates) * len(self.decays)
        if self.tuning_runs < planned:
            raise UserError(
                f"search.tuning_runs={self.tuning_runs} is too few to try {planned} pairs of search.rates and"
                " search.decays."
            )

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Train each mixer on each probe, and write the page.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.profile import profile

        made = profile(sweeper, overrides)
        if made is not None and not made.is_complete:
            raise NotSettled


def mixers_in(section: object) -> dict[str, list[str]]:
    """Return the overrides of each mixer, by what was typed for it. UserError if it isn't a mixer."""
    mixers = named(section, "mixers", "[attn=mha,rec=mamba2]")
    return {name: [word for typed in words for word in mixer_words(typed)] for name, words in mixers.items()}


def mixer_words(word: str) -> list[str]:
    """Return the overrides of a word: attn=… or rec=… as the only mixer of all layers, others as they are."""
    key, equals, option = word.partition("=")
    if not equals:
        raise UserError(
            f"mixers has {word!r}, which isn't an override. Type attn=<option> or rec=<option>, with further overrides"
            " after a space: 'mixers=[attn=mha,attn=mha model.attn.softcap=30]'."
        )
    if key not in LAYOUTS:
        return [word]
    return [f"model/layout={LAYOUTS[key]}", f"model/{key}={option}"]


def probes_in(section: object) -> dict[str, list[str]]:
    """Return the overrides of each probe, by its name. UserError if it isn't a probe."""
    probes = named(section, "probes", "[mqar_small,copying_small]")
    return {
        name: [word if "=" in word else f"data=probe/{word}" for word in words]
        for name, words in probes.items()
    }


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


def short(word: str) -> str:
    """Return an override with the last part of its key: window=32 of model.attn.mask.window=32."""
    return f"{re.split('[./]', key_of(word))[-1]}={word.partition('=')[2]}" if "=" in word else word


def difficulty_of(name: str, names: Sequence[str]) -> tuple[str, float | None]:
    """Return the task of a probe, and the number that distinguishes it from others of the task, if one does.

    Args:
        names: of all probes.
    """
    task = name.split(" ")[0]
    changes = [changes_in(other) for other in names if other.split(" ")[0] == task]
    if len(changes) < 2:
        return name, None
    keys = sorted({key for change in changes for key in change})
    differing = [key for key in keys if len({change.get(key) for change in changes}) == len(changes)]
    value = changes_in(name).get(differing[0]) if len(differing) == 1 else None
    return task, float(value) if value and NUMBER.fullmatch(value) else None


def changes_in(name: str) -> dict[str, str]:
    """Return the values that follow the first word of a name, by their keys."""
    pairs = (change.partition("=") for change in name.split(" ")[1:])
    return {key: value for key, _, value in pairs}
