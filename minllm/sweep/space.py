"""The search space: its parameters, and the conditions under which each of them is sampled.

Parameters are written in the grammar of Hydra's Optuna plugin, in a file in conf/search or on the command line:

    model.dim: choice(64,128,256)            optim.lr: tag(log,interval(1e-4,1e-2))
    model.n_layers: range(1,9)               model/attn: choice(mha,gqa,mqa)

Parameters that have no effect aren't sampled: the length of a restart in a schedule without restarts would only add
noise to what the sampler learns.

String values in this module are in Hydra's override syntax: 'a b' includes its quotes, and a list is [attn mlp].
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ParsedElementType, Quote, QuotedString
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from minllm.errors import UserError, first_line, suggest
from minllm.schema.overrides import format_value

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

Values = Mapping[str, Any]  # parameter → value

NOT_THERE = object()
"""The value of a key that doesn't exist or isn't sampled in a trial."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The contents of a file in conf/search.

    params: parameter → its values, in Hydra's grammar
    fixed: overrides for every trial of this search, unless the command line sets the same keys
    when: parameter → values of other parameters under which it is sampled: {schedule.restarts: {schedule: [cosine]}}
    multiples: parameter → a parameter that must divide it: {model.dim: model.attn.n_heads}
    first_that_fits: parameter → ordered values; each is tried only if the previous one ran out of memory
    """

    params: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    when: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    multiples: dict[str, str] = field(default_factory=dict)
    first_that_fits: dict[str, list[Any]] = field(default_factory=dict)

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Run the search; `sweeper` holds the configuration, `overrides` those of the command line."""
        from minllm.sweep.search import search

        search(sweeper, overrides)

    def __post_init__(self):
        for name in self.when:
            if name not in self.params:
                raise UserError(f"search.when has no parameter '{name}'.{suggest(name, self.params)}")
        for name, grammar in self.params.items():
            if isinstance(grammar, (list, dict)):
                raise UserError(
                    f"search.params.{name} must be a sweep in Hydra's grammar, such as choice(…)."
                )
        for name, values in self.first_that_fits.items():
            if not values:
                raise UserError(f"search.first_that_fits.{name} has no values to try.")


class Space:
    """The parameters to sample, in order, and the fixed overrides.

    Args:
        plan: the search file.
        overrides: those of the command line, which take precedence; a key with several values is a parameter, one with
            a single value is fixed.
        compose: composes a configuration from overrides.
        config_loader: Hydra's config loader, which expands `glob(…)`.

    Raises:
        UserError: a parameter can't be parsed, or a condition refers to a later or unknown parameter.
    """

    def __init__(
        self,
        plan: Plan,
        overrides: Sequence[str],
        compose: Callable[[list[str]], DictConfig],
        config_loader: Any = None,
    ):
        parser = OverridesParser.create(config_loader=config_loader)
        self.distributions: dict[str, BaseDistribution] = {}
        self.fixed: dict[str, str] = {name: spelled(value) for name, value in plan.fixed.items()}
        self.deleted: list[str] = []
        for name, grammar in plan.params.items():
            self._add(parsed(parser, f"{name}={grammar}"))
        for override in overrides:
            self._add(parsed(parser, override))
        # parameters only on the command line come first, so that the file's conditions may refer to them
        self.distributions = dict(sorted(self.distributions.items(), key=lambda item: item[0] in plan.params))
        self.when = {name: needs for name, needs in plan.when.items() if name in self.distributions}
        self.multiples = plan.multiples
        self.first_that_fits = {
            name: values
            for name, values in plan.first_that_fits.items()
            if name not in (*self.distributions, *self.fixed)
        }
        self.base = compose(self.overrides({}))
        self._refuse_loose_conditions(known={*plan.params, *self.first_that_fits})
        self._counts: dict[tuple[Any, ...], int] = {}

    @property
    def continuous(self) -> list[str]:
        """The parameters with a continuous range."""
        kinds = self.distributions.items()
        return [name for name, kind in kinds if isinstance(kind, FloatDistribution) and kind.step is None]

    def is_sampled(self, name: str, values: Values) -> bool:
        """Whether parameter `name` is sampled, given the values of the parameters before it."""
        return all(
            any(are_equal(self.value_of(condition, values), value) for value in wanted)
            for condition, wanted in self.when.get(name, {}).items()
        )

    def misfit(self, values: Values) -> str | None:
        """Return why values violate the plan's `multiples`; None if they don't."""
        for name, divisor in self.multiples.items():
            pair = self.value_of(name, values), self.value_of(divisor, values)
            if all(isinstance(value, int) and value for value in pair) and pair[0] % pair[1]:
                return f"{name}={pair[0]} isn't a multiple of {divisor}={pair[1]}."
        return None

    def overrides(self, values: Values) -> list[str]:
        """Return the overrides of a trial with these values."""
        overrides = {**self.fixed, **{name: format_value(value) for name, value in values.items()}}
        return [*(f"{name}={value}" for name, value in overrides.items()), *self.deleted]

    def value_of(self, key: str, values: Values) -> Any:
        """Return a key's value in a trial: sampled, or from the base configuration; or NOT_THERE.

        A parameter that isn't sampled in this trial has no value, whatever its default: its key may not exist there.
        """
        if key in values:
            return meaning(values[key])
        if key in self.distributions:
            return NOT_THERE
        if key in self.base.choices:
            return self.base.choices[key]
        value = OmegaConf.select(self.base, key, default=NOT_THERE)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    # ---- the grid: never materialized, because a few parameters make millions of combinations --------

    def size(self) -> int:
        """Return the number of combinations that satisfy the conditions.

        Raises:
            UserError: a parameter has a continuous range.
        """
        if self.continuous:
            raise UserError(
                f"{self.continuous[0]} has a continuous range, which a grid can't enumerate: list its values as"
                f" '{self.continuous[0]}=choice(…)', or use another hydra/sweeper/sampler."
            )
        return self._count(0, {})

    def size_without_conditions(self) -> int:
        return math.prod(map(len, self._choices.values()))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every combination that satisfies the conditions; the last parameters change fastest."""
        return map(self.combination, range(self.size()))

    def combination(self, index: int) -> dict[str, Any]:
        """Return the combination at an index of the grid."""
        values: dict[str, Any] = {}
        for depth, (name, options) in enumerate(self._choices.items()):
            if not self.is_sampled(name, values):
                continue
            if name not in self._referenced[depth + 1]:
                option, index = divmod(index, self._count(depth + 1, values))
                values[name] = options[option]
                continue
            for value in options:
                below = self._count(depth + 1, {**values, name: value})
                if index < below:
                    values[name] = value
                    break
                index -= below
        return values

    def _count(self, depth: int, values: dict[str, Any]) -> int:
        """Return the number of combinations of the parameters from `depth` on, given the values before them."""
        if depth == len(self._choices):
            return self.misfit(values) is None
        key = (depth, *(values.get(name, NOT_THERE) for name in self._referenced[depth]))
        if key not in self._counts:
            name, options = list(self._choices.items())[depth]
            if not self.is_sampled(name, values):
                self._counts[key] = self._count(depth + 1, values)
            elif name not in self._referenced[depth + 1]:
                self._counts[key] = len(options) * self._count(depth + 1, values)
            else:
                self._counts[key] = sum(self._count(depth + 1, {**values, name: value}) for value in options)
        return self._counts[key]

    @functools.cached_property
    def _choices(self) -> dict[str, Sequence[Any]]:
        return {name: choices(kind) for name, kind in self.distributions.items()}

    @functools.cached_property
    def _referenced(self) -> list[list[str]]:
        """For each depth, the earlier parameters that conditions of the parameters from there on refer to."""
        order, of_multiples = list(self.distributions), {*self.multiples, *self.multiples.values()}
        referenced = []
        for depth in range(len(order) + 1):
            later = of_multiples.union(*(self.when.get(name, {}) for name in order[depth:]))
            referenced.append([name for name in order[:depth] if name in later])
        return referenced

    # ---- construction --------------------------------------------------------------------------------

    def _add(self, override: Override) -> None:
        """Add one override; it replaces an earlier one for the same key."""
        name = override.get_key_element()
        bare = name.lstrip("+~")
        if override.is_delete():
            self._remove(bare)
            self.deleted.append(override.input_line)
        elif override.is_sweep_override():
            kind = distribution(override)
            if bare in self.distributions and name == bare:
                self.distributions[name] = kind
            else:
                self._remove(bare)
                self.distributions[name] = kind
        else:
            self._remove(bare)
            self.fixed[name] = override.get_value_element_as_str()

    def _remove(self, bare: str) -> None:
        for name in (bare, f"+{bare}", f"++{bare}"):
            self.distributions.pop(name, None)
            self.fixed.pop(name, None)

    def _refuse_loose_conditions(self, known: set[str]) -> None:
        order = list(self.distributions)
        for name, needs in self.when.items():
            for condition in needs:
                if condition in order and order.index(condition) >= order.index(name):
                    raise UserError(
                        f"search.when.{name} refers to {condition}, which is sampled later: write {condition} first."
                    )
        references = [
            (f"search.when.{name}", condition) for name, needs in self.when.items() for condition in needs
        ]
        references += [("search.multiples", name) for pair in self.multiples.items() for name in pair]
        for place, name in references:
            if name not in known and self.value_of(name, {}) is NOT_THERE and not self._may_appear(name):
                raise UserError(f"{place} refers to {name}, which doesn't exist.{suggest(name, known)}")

    def _may_appear(self, key: str) -> bool:
        """Whether a key that the base configuration lacks may exist in a trial, because its group is sampled or set."""
        groups = (
            name.replace("/", ".")
            for name in (*self.distributions, *self.fixed)
            if "/" in name or "." not in name
        )
        return key in self.distributions or any(key.startswith(f"{group}.") for group in groups)


def parsed(parser: OverridesParser, override: str) -> Override:
    try:
        return parser.parse_overrides([override])[0]
    except HydraException as error:
        if "NoneType" in str(error):
            raise UserError(
                f"Can't read {override}: null can't be in a function, so write {override.split('=')[0]}=null,1."
            ) from error
        raise UserError(f"Can't read {override}: {first_line(error)}.") from error


def distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution for an override such as `model.dim=choice(64,128)`."""
    try:
        if override.is_choice_sweep() or not (override.is_range_sweep() or override.is_interval_sweep()):
            return categorical(list(override.sweep_iterator(override_text)))  # choice(…) or glob(…)
        kind = create_optuna_distribution_from_override(override)
        if not all(math.isfinite(end) for end in (kind.low, kind.high)):
            raise ValueError("its ends must be finite numbers")
        return kind
    except (ValueError, AssertionError, NotImplementedError, HydraException) as error:
        raise UserError(f"Can't search {override.input_line}: {first_line(error)}.") from error


def categorical(values: list[Any]) -> CategoricalDistribution:
    """Return the choice between `values`. ValueError if they are empty or contain NaN or duplicates."""
    if not values:
        raise ValueError("it has no values")
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        raise ValueError("NaN isn't allowed")
    for word, count in Counter(map(format_value, values)).items():
        if count > 1:
            raise ValueError(f"{word} is listed more than once")
    return CategoricalDistribution(values)


def override_text(value: ParsedElementType) -> Any:
    """Return numbers and booleans unchanged, and anything else in override syntax: Optuna stores only plain values."""
    if isinstance(value, (bool, int, float)):
        return value
    word = Override._get_value_element_as_str(value)
    bare = word.replace("\\ ", " ")  # Hydra escapes every space, though most needn't be
    return bare if parse_alike(bare, word) else word


def choices(kind: BaseDistribution) -> Sequence[Any]:
    """Return the values of a discrete distribution."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices
    if isinstance(kind, IntDistribution) and not kind.log:
        return range(kind.low, kind.high + 1, kind.step)
    if isinstance(kind, IntDistribution):
        return range(kind.low, kind.high + 1)
    # 0.3 rather than 0.1 + 0.1 + 0.1
    low, high, step = (Decimal(str(number)) for number in (kind.low, kind.high, kind.step))
    return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


def spelled(value: Any) -> str:
    """Return a value from a file in override syntax, quoted if a bare string would be parsed as something else."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{spelled(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, str) and not is_plain(value):
        return QuotedString(value, Quote.single).with_quotes()
    return format_value(value)


def is_plain(text: str) -> bool:
    """Whether Hydra parses the text as the same string without quotes, even inside a list."""
    try:
        return read(f"[{text}]") == [text]
    except HydraException:
        return False


def parse_alike(first: str, second: str) -> bool:
    try:
        return read(first) == read(second)
    except HydraException:
        return False


@functools.cache
def read(text: str) -> Any:
    return OverridesParser.create().parse_override(f"x={text}").value()


def meaning(value: Any) -> Any:
    """Return the value that Hydra parses from a parameter's value, such as None from null."""
    return read(value) if isinstance(value, str) else value


def are_equal(first: Any, second: Any) -> bool:
    """Whether two values are equal; unlike in Python, True doesn't equal 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)
