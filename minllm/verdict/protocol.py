"""The protocol of a verdict and its arms, all of which is fixed before the first run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.schema.checking import describe, fits
from minllm.schema.foreign import SECTIONS_OF_SEARCH
from minllm.schema.options import Count, FolderName, Natural, Positive, Share
from minllm.schema.overrides import is_seed, key_of
from minllm.study.arms import ABSENT, identity, training_settings
from minllm.study.comparison import ALL
from minllm.study.metric import Name as MetricName
from minllm.study.tuning import RATE, Tuning
from minllm.verdict.random_search import FINALISTS

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

MOST_LOOKS = 100

FIRST_TUNING_SEED = 1000
"""Seeds below this are used by the verdict; learning rates are tuned on this seed and above."""


Equal: TypeAlias = (
    Literal["params", "params_active", "params_non_embedding", "flops_per_token", "state_bytes"] | None
)
"""What can be made equal to the first arm."""

CLOSEST = 1.1
"""The smallest factor between the learning rates of a grid, which are rounded to three digits."""


SET_BY_VERDICTS = {
    "hydra.sweeper.n_trials": "whose runs are limited by {limits}",
    "hydra.sweeper.sampler": "which tries what search.tune and search.rates say",
    "sweep.pruner": "which trains every run to its end",
    "sweep.metric": "which compares val_bpb",
    "sweep.keep_checkpoints": "which keeps the last checkpoint of each pair's runs",
}
"""Options of searches that a verdict sets itself, each with a clause that explains how."""
SET_BY_RATES = {
    **SET_BY_VERDICTS,
    "hydra.sweeper.sampler": "which tries what search.rates says",
    "sweep.keep_checkpoints": "which keeps none",
}
"""The same of what tries a grid of learning rates alone and keeps no checkpoint."""
NOT_OF_ARMS = (*SECTIONS_OF_SEARCH, "hydra", "resume", "task")
"""Sections that an arm's overrides can't set, because they concern all arms."""
CHANGEABLE = ("prompts", "stories", "ladder.check")
"""What may change while a verdict or ladder continues, because it can't change what was measured so far."""


class OfArms:
    """What the protocols of all searches that train arms have in common."""

    noun: ClassVar[str]
    """What it is called in sentences."""
    section: ClassVar[str] = "arms"
    """The section of the configuration that lists what is trained."""
    numbers: ClassVar[str]
    """The option that sets the number of seeds."""
    limits: ClassVar[str]
    """The options that limit the number of runs."""
    sets: ClassVar[Mapping[str, str]] = SET_BY_VERDICTS
    """Options of searches that it sets itself, each with a clause that explains how."""
    least_arms: int = 2
    """The fewest arms that it can have."""
    equal: Equal
    """The quantity in which all arms are sized to match the first; None leaves their sizes alone. Ladders have none."""


@dataclass(frozen=True, kw_only=True)
class ArmsProtocol(OfArms):
    """What the protocols of a verdict and of a ladder have in common.

    tune: the keys that are tuned for each arm: the learning rate alone on a grid
    rates: the grid's learning rates, as multiples of each arm's optim.lr
    tuning_runs: the most tuning runs of an arm on the grid
    tuning_seeds: seeds of the tuning runs; everything is tried with the first, and the best values with all
    margin: differences below this share of the baseline's bits per byte count as equal
    prompts, stories: prompts and number of stories for the samples in the report
    """

    tune: list[str]
    rates: list[Positive]
    tuning_runs: Count
    tuning_seeds: list[Natural]
    margin: Share
    prompts: list[str]
    stories: Natural

    def __post_init__(self):
        for key in ("tune", "rates", "tuning_seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise UserError(f"search.{key} has a duplicate: {getattr(self, key)}. Remove it.")
        if any(seed < FIRST_TUNING_SEED for seed in self.tuning_seeds):
            raise UserError(
                f"search.tuning_seeds must be {FIRST_TUNING_SEED} or above: the {self.noun} uses the seeds below."
            )
        if self.is_tuned and not self.tuning_seeds:
            raise UserError("search.tuning_seeds has no seed to tune on: add one, or set search.tune=[].")
        if self.is_grid and self.tuning_runs < len(self.rates):
            raise UserError(
                f"search.tuning_runs={self.tuning_runs} is too few to try each of the {len(self.rates)} learning rates"
                " in search.rates."
            )
        refuse_close(self.rates)

    @property
    def is_tuned(self) -> bool:
        return bool(self.tune) and (self.tune != [RATE] or bool(self.rates))

    @property
    def is_grid(self) -> bool:
        """Whether the learning rate alone is tuned."""
        return self.is_tuned and self.tune == [RATE]


@dataclass(frozen=True, kw_only=True)
class Protocol(ArmsProtocol):
    """The `search:` section of a verdict.

    equal: the quantity in which all arms are sized to match the first; null leaves their sizes alone
    tune: the keys that are tuned for each arm: the learning rate alone on a grid, others by random search
    rates: the grid's learning rates, as multiples of each arm's optim.lr
    tuning_runs: the most tuning runs of an arm on the grid
    trials: the number of draws that each arm tries in a random search
    span: a random search draws between a configured value divided by this and multiplied by it
    tuning_seeds: seeds of the tuning runs; everything is tried with the first, and the best values with all
    first_seed: of the pairs; another one repeats a verdict with seeds that weren't used before
    looks: numbers of pairs after which the results are tested; the error rate is shared out among them
    metric: what decides, and what each arm is tuned by
    margin: differences below this share of the baseline's bits per byte, or of accuracies below this, count as equal
    baseline: the arm that the others are compared with; all compares every pair of arms
    aa: also compare each arm with itself; with a single arm, only that
    prompts, stories: prompts and number of stories for the samples in the report
    ledger: hold the error rate over all ideas in the ledger, and not only within this verdict
    champion: compare with the best arm so far for the same question, instead of arms.a
    """

    equal: Equal
    trials: Count
    span: Positive
    first_seed: Natural
    looks: list[Count]
    metric: MetricName
    baseline: str | None
    aa: bool
    ledger: bool
    champion: bool

    noun = "verdict"
    numbers = "search.looks"
    limits = "search.looks, search.tuning_runs and search.trials"
    sets = {**SET_BY_VERDICTS, "sweep.metric": "whose metric is search.metric"}

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Reach the verdict.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.sequential import reach_verdict

        comparison = reach_verdict(sweeper, overrides)
        if comparison is not None and not comparison.is_answered:
            raise NotSettled

    def __post_init__(self):
        if not self.looks or sorted(set(self.looks)) != list(self.looks):
            raise UserError("search.looks must be increasing numbers of pairs, such as [8,12,18].")
        if len(self.looks) > MOST_LOOKS:
            raise UserError(
                f"search.looks has {len(self.looks)} numbers of pairs, which is more than {MOST_LOOKS}: leave some out."
            )
        super().__post_init__()
        most = (FIRST_TUNING_SEED - self.first_seed) // self.runs_per_pair
        if self.looks[-1] > most:
            since = f" from seed {self.first_seed}" if self.first_seed else ""
            raise UserError(
                f"search.looks can't exceed {max(0, most)} pairs{since}, but ends at {self.looks[-1]}."
            )
        self._refuse_bad_choices()

    def _refuse_bad_choices(self) -> None:
        if self.is_tuned and not self.is_grid and self.trials < FINALISTS:
            raise UserError(f"search.trials must be {FINALISTS} or more, not {self.trials}.")
        if self.span <= 1:
            raise UserError(f"search.span must be a factor above 1, not {self.span:g}.")
        if self.champion and not self.ledger:
            raise UserError(
                "search.champion=true crowns only what holds among all ideas, so it needs search.ledger=true."
            )
        if self.champion and self.baseline not in (None, "a"):
            raise UserError(
                f"search.champion=true makes the champion the baseline: leave search.baseline={self.baseline} out."
            )

    @property
    def least_arms(self) -> int:
        return 1 if self.aa else 2

    @property
    def runs_per_pair(self) -> int:
        """Number of seeds per arm in a pair."""
        return 2 if self.aa else 1

    def pairs_in(self, arms: Iterable[Sequence[FrozenTrial]]) -> int:
        """Return the number of finished pairs: consecutive ones from the first whose seeds have ended in every arm."""
        ended = [{trial.params["seed"] for trial in trials if trial.state.is_finished()} for trials in arms]
        first = self.first_seed
        after = next(
            seed for seed in itertools.count(first) if not all(seed in seeds_of_arm for seeds_of_arm in ended)
        )
        return (after - first) // self.runs_per_pair

    def seeds_of(self, pairs: int) -> range:
        """Return the seeds of each arm in the first pairs."""
        return range(self.first_seed, self.first_seed + pairs * self.runs_per_pair)


def listed(looks: Sequence[int]) -> str:
    """Return the looks as text."""
    if len(looks) <= 4:
        *earlier, last = map(str, looks)
        return f"{', '.join(earlier)} and {last}" if earlier else last
    return f"{looks[0]}, {looks[1]}, {looks[2]}, …, {looks[-1]}"


def refuse_close(rates: Sequence[float]) -> None:
    """Raise UserError if two learning rates of a grid are so close that rounding could make them equal."""
    if any(high < CLOSEST * low for low, high in itertools.pairwise(sorted(rates))):
        raise UserError(f"search.rates must differ by a factor of {CLOSEST} or more, and not be {rates}.")


def arms_in(section: Mapping[str, Any], protocol: OfArms) -> dict[str, list[str]]:
    """Return each arm's overrides. UserError if they are invalid or there are too few arms."""
    arms = {str(name): overrides for name, overrides in section.items() if overrides is not None}
    for name, overrides in arms.items():
        if not fits(name, FolderName):
            raise UserError(f"The name of an arm must be {describe(FolderName)}, not {name!r}.")
        if not fits(overrides, list[str]) or not all("=" in override for override in overrides):
            raise UserError(
                f"arms.{name} must be a list of overrides key=value, such as 'arms.{name}=[model/attn=mqa]', not"
                f" {overrides}."
            )
        for override in overrides:
            if re.split("[./]", key_of(override))[0] in NOT_OF_ARMS:
                raise UserError(
                    f"{protocol.section}.{name} has {override}, which concerns the whole {protocol.noun}. Put it"
                    f" outside {protocol.section}."
                )
        if any(map(is_seed, overrides)):
            raise UserError(
                f"{protocol.section}.{name} has a seed, but all {protocol.section} use the same seeds: remove it."
            )
    if len(arms) < protocol.least_arms:
        itself = " To compare a single arm with itself, add search.aa=true." * isinstance(protocol, Protocol)
        raise UserError(
            f"A {protocol.noun} needs two arms: add one such as 'arms.b=[model/attn=mqa]' to arms.a, which is the"
            f" default model unless set.{itself}"
        )
    if isinstance(protocol, Protocol) and protocol.baseline not in (None, ALL, *arms):
        raise UserError(f"search.baseline={protocol.baseline} isn't an arm. Choose {', '.join(arms)} or all.")
    return {name: list(overrides) for name, overrides in arms.items()}


def refuse_own_seeds(overrides: Sequence[str], protocol: OfArms) -> None:
    if any(map(is_seed, overrides)):
        of_tuning = ", and those for tuning by search.tuning_seeds" * hasattr(protocol, "tuning_seeds")
        raise UserError(
            f"A {protocol.noun} chooses its seeds: leave seed= out. Their number is set by {protocol.numbers}"
            f"{of_tuning}."
        )


def refuse_without_effect(overrides: Sequence[str], protocol: OfArms) -> None:
    """Raise UserError if an override sets an option of searches that a verdict or ladder sets itself."""
    for override in overrides:
        key = key_of(override).replace("/", ".")
        for section, instead in protocol.sets.items():
            if f"{key}.".startswith(f"{section}."):
                how = instead.format(limits=protocol.limits)
                raise UserError(f"{override} has no effect in a {protocol.noun}, {how}. Leave it out.")


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], name: str, noun: str) -> None:
    """Raise UserError if the protocol differs from when the verdict or ladder began."""
    if set(before) != set(now):
        raise UserError(
            f"The {noun} '{name}' was begun by another version of minllm, whose protocol had other options, so it"
            f" can't be continued. Start another {noun}: sweep.name=<name>."
        )
    for key, value in now.items():
        if key not in CHANGEABLE and before.get(key) != value:
            asked = (
                key
                if key in ("arms", "mixers", "probes", "models", "datasets") or "." in key
                else f"search.{key}"
            )
            raise UserError(
                f"The {noun} '{name}' began with {asked}={before.get(key)}, and a choice made after seeing results"
                f" proves nothing. Keep that value, or start another {noun}: sweep.name=<name>."
            )


def refuse_identical_arms(
    cfgs: Mapping[str, DictConfig], sized: bool = False, *, prefix: str = "arms.", instead: str = ""
) -> None:
    """Raise UserError if two arms have the same configuration or compute the same model, however they were typed.

    Args:
        sized: whether they have been given the same size, which overrides widths.
        prefix: what precedes the name of an arm in sentences.
        instead: what else can be done about two arms with the same configuration, as a clause.
    """
    known: dict[tuple[Any, ...], str] = {}
    for name, cfg in cfgs.items():
        other = known.setdefault(identity(cfg), name)
        if other != name:
            raise UserError(
                f"{prefix}{other} and {prefix}{name} are the same: they don't differ in anything that affects training"
                f"{', once they have been given the same size (search.equal=null leaves their sizes alone)' * sized}."
                f" Change one of them{instead}."
            )
    from minllm.model.unused import computes_the_same  # imports torch

    for (name, cfg), (other, other_cfg) in itertools.combinations(cfgs.items(), 2):
        if differ_only_in_model(cfg, other_cfg) and computes_the_same(cfg, other_cfg):
            raise UserError(
                f"{prefix}{name} and {prefix}{other} compute the same: their differences don't affect the model."
                " Change one of them."
            )


def differ_only_in_model(first: DictConfig, second: DictConfig) -> bool:
    """Whether two configurations differ only in their model."""
    values, others = training_settings(first), training_settings(second)
    differ = [key for key in {*values, *others} if values.get(key, ABSENT) != others.get(key, ABSENT)]
    return all(key.startswith(("model.", "norm.")) for key in differ)


def refuse_same_results(tuning: Mapping[str, Tuning]) -> None:
    """Raise UserError if two arms had exactly the same losses wherever they were tuned, so they compute the same."""
    tried_by_arm = [(name, tuned.tried) for name, tuned in tuning.items()]
    for (name, tried), (other, tried_by_other) in itertools.combinations(tried_by_arm, 2):
        if tried == tried_by_other and all(tuned.succeeded for tuned in tried):
            raise UserError(
                f"arms.{name} and arms.{other} reached exactly the same loss in every tuning run, so their differences"
                " don't affect what is computed. Change one of them."
            )
