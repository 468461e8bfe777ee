"""The space that a search looks through: its parameters, and the conditions under which each is asked for at all.

A parameter is written in the grammar of Hydra's Optuna plugin, in a file of conf/search or on the command line:

    model.dim: choice(64,128,256)            optim.lr: tag(log,interval(1e-4,1e-2))
    model.n_layers: range(1,9)               model/attn: choice(mha,gqa,mqa)

What doesn't matter isn't asked for: a restart's length without restarts would only blur what the sampler learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from minllm.errors import UserError, first_line, suggest

Values = Mapping[str, Any]  # parameter → value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file of conf/search says.

    params: parameter → its values, in Hydra's grammar
    fixed: what every trial of this search has, unless the command line says otherwise
    when: parameter → the values of others for which it is asked for: {schedule.restarts: {schedule: [cosine]}}
    multiples: parameter → another that must divide it: {model.dim: model.attn.n_heads}
    first_that_fits: parameter → values in order; the next is only tried where the one before ran out of memory
    """

    params: dict[str, Any]
    fixed: dict[str, Any]
    when: dict[str, dict[str, list[Any]]]
    multiples: dict[str, str]
    first_that_fits: dict[str, list[Any]]

    def __post_init__(self):
        for name in self.when:
            if name not in self.params:
                raise UserError(f"search.when has no parameter '{name}'.{suggest(name, self.params)}")


class Space:
    """The parameters to ask for, in order, and what is fixed.

    Args:
        plan: the file's part.
        typed: the command line's part, which wins; several values are a parameter, one is fixed.
        compose: makes a configuration of words; what they leave open has its default there.
        config_loader: Hydra's, which knows the options that `glob(…)` stands for.

    Raises:
        UserError: a parameter can't be read, or a condition names one that is asked for later or not at all.
    """

    def __init__(
        self,
        plan: Plan,
        typed: Sequence[str],
        compose: Callable[[list[str]], DictConfig],
        config_loader: Any = None,
    ):
        parser = OverridesParser.create(config_loader=config_loader)
        own = [f"{name}={grammar}" for name, grammar in plan.params.items()]
        self.distributions: dict[str, BaseDistribution] = {}
        self.fixed: dict[str, str] = {name: written(value) for name, value in plan.fixed.items()}
        self.deleted: list[str] = []
        for override in parser.parse_overrides([*own, *typed]):
            self._take(override)
        self.when = {name: needs for name, needs in plan.when.items() if name in self.distributions}
        self.multiples = plan.multiples
        self.first_that_fits = {
            name: values for name, values in plan.first_that_fits.items() if name not in self._named()
        }
        self.base = compose(self.words({}))
        self._refuse_loose_conditions()

    @property
    def is_grid(self) -> bool:
        return not self.continuous

    @property
    def continuous(self) -> list[str]:
        """The parameters with more values than can be counted."""
        kinds = self.distributions.items()
        return [name for name, kind in kinds if isinstance(kind, FloatDistribution) and kind.step is None]

    def asks_for(self, name: str, values: Values) -> bool:
        """Say whether `name` matters where the parameters before it have these values."""
        return all(
            written(self.value_of(other, values)) in [written(one) for one in wanted]
            for other, wanted in self.when.get(name, {}).items()
        )

    def misfit(self, values: Values) -> str | None:
        """Say why these values don't go together, as far as the plan tells; None if they do."""
        for name, divisor in self.multiples.items():
            pair = self.value_of(name, values), self.value_of(divisor, values)
            if all(isinstance(one, int) for one in pair) and pair[0] % pair[1]:
                return f"{name}={pair[0]} is no multiple of {divisor}={pair[1]}."
        return None

    def grid(self) -> Iterator[dict[str, Any]]:
        """Return every combination of values that the conditions leave, in the order in which they are written.

        Raises:
            UserError: a parameter has more values than can be counted.
        """
        if self.continuous:
            raise UserError(
                f"{self.continuous[0]} has more values than a grid can hold: give it a few, such as"
                f" '{self.continuous[0]}=choice(…)', or choose another hydra/sweeper/sampler."
            )
        return self._grid(list(self.distributions), {})

    def size_without_conditions(self) -> int:
        return math.prod(len(choices(kind)) for kind in self.distributions.values())

    def words(self, values: Values) -> list[str]:
        """Return what would be typed for a trial with these values."""
        said = {**self.fixed, **{name: written(value) for name, value in values.items()}}
        return [*(f"{name}={value}" for name, value in said.items()), *self.deleted]

    def value_of(self, key: str, values: Values) -> Any:
        """Return a key's value in a trial: asked for, fixed, or as the configuration has it."""
        if key in values:
            return values[key]
        if key in self.base.choices:
            return self.base.choices[key]
        return OmegaConf.select(self.base, key)

    def _grid(self, names: list[str], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not names:
            if self.misfit(values) is None:
                yield values
            return
        name, *rest = names
        if not self.asks_for(name, values):
            yield from self._grid(rest, values)
            return
        for value in choices(self.distributions[name]):
            yield from self._grid(rest, {**values, name: value})

    def _take(self, override: Override) -> None:
        """Take one word: what comes later wins."""
        name = override.get_key_element()
        self.distributions.pop(name, None)
        self.fixed.pop(name, None)
        if override.is_delete():
            self.deleted.append(override.input_line)
        elif override.is_sweep_override():
            self.distributions[name] = distribution(override)
        else:
            self.fixed[name] = override.get_value_element_as_str()

    def _named(self) -> set[str]:
        return {*self.distributions, *self.fixed}

    def _refuse_loose_conditions(self) -> None:
        order = list(self.distributions)
        for name, needs in self.when.items():
            for other in needs:
                if other in order and order.index(other) > order.index(name):
                    raise UserError(
                        f"search.when.{name} looks at {other}, which is asked for later: write {other} first."
                    )


def distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution for a word such as `model.dim=choice(64,128)`."""
    try:
        if not (override.is_choice_sweep() or override.is_range_sweep() or override.is_interval_sweep()):
            return CategoricalDistribution(list(override.sweep_iterator(Transformer.encode)))  # glob(…)
        return create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"Can't search {override.input_line}: {first_line(error)}.") from error


def choices(kind: BaseDistribution) -> Sequence[Any]:
    """Return the values of a distribution that has a countable number of them."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices
    if isinstance(kind, IntDistribution) and not kind.log:
        return range(kind.low, kind.high + 1, kind.step)
    if isinstance(kind, IntDistribution):
        return range(kind.low, kind.high + 1)
    count = round((kind.high - kind.low) / kind.step) + 1
    return [min(kind.low + i * kind.step, kind.high) for i in range(count)]


def written(value: Any) -> str:
    """Return a value as it's typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(written(one) for one in value)}]"
    return str(value)
