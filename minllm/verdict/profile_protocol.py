"""The protocol of a profile, its mixers and its probes, all of which is fixed before the first run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.options import NonNegative, Share
from minllm.verdict.cells_protocol import CellsProtocol, named, options_named
from minllm.verdict.protocol import Equal

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

LAYOUTS = {"attn": "transformer", "rec": "recurrent"}
"""The layout in which an option of model/attn or model/rec is the only mixer, each followed by an MLP."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class ProfileProtocol(CellsProtocol):
    """The `search:` section of a profile; see `CellsProtocol` for what isn't explained here.

    equal: the quantity in which all mixers are sized to match the first, on each probe; null leaves their sizes alone
    solved: the accuracy at which a run ends, as a share of what is possible
    decays: the weight decays that are tried with each of the learning rates
    """

    equal: Equal
    solved: Share
    decays: list[NonNegative]

    noun = "profile"
    section = "mixers"
    least_arms = 1
    sets = {
        "hydra.sweeper.n_trials": "whose runs are limited by {limits}",
        "hydra.sweeper.sampler": "which tries what search.rates and search.decays say",
        "sweep.pruner": "which trains every run until it has solved its probe or its steps are used up",
        "sweep.metric": "which compares val_accuracy",
        "sweep.keep_checkpoints": "which keeps none",
        "train.stop_at_accuracy": "which stops runs by search.solved",
    }
    different = ("rates", "decays", "tuning_seeds")

    @property
    def planned(self) -> tuple[int, str]:
        return len(self.rates) * len(self.decays), "pairs of search.rates and search.decays"

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
    return options_named(section, "probes", "data=probe/", "[mqar_small,copying_small]")


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
