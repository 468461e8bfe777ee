"""The space that a search looks through: its parameters, and the conditions under which each is asked for at all.

A parameter is written in the grammar of Hydra's Optuna plugin, in a file of conf/search or on the command line:

    model.dim: choice(64,128,256)            optim.lr: tag(log,interval(1e-4,1e-2))
    model.n_layers: range(1,9)               model/attn: choice(mha,gqa,mqa)

What doesn't matter isn't asked for: a restart's length without restarts would only blur what the sampler learns.

Where a value is a string here, it's the word that Hydra reads the value from: 'a b', quotes included, or [attn mlp].
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
from minllm.schema.overrides import written

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

Values = Mapping[str, Any]  # parameter → value

NOT_THERE = object()
"""What stands for the value of a key that a trial doesn't have, or that isn't asked for in it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file of conf/search says.

    params: parameter → its values, in Hydra's grammar
    fixed: what every trial of this search has, unless the command line says otherwise
    when: parameter → the values of others for which it is asked for: {schedule.restarts: {schedule: [cosine]}}
    multiples: parameter → another that must divide it: {model.dim: model.attn.n_heads}
    first_that_fits: parameter → values in order; the next is only tried where the one before ran out of memory
    """

    params: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    when: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    multiples: dict[str, str] = field(default_factory=dict)
    first_that_fits: dict[str, list[Any]] = field(default_factory=dict)

    def lead(self, sweeper: PruningSweeper, typed: Sequence[str]) -> None:
        """Search as the plan says; `sweeper` has the configuration, `typed` the overrides but for Hydra's own."""
        from minllm.sweep.search import search

        search(sweeper, typed)

    def __post_init__(self):
        for name in self.when:
            if name not in self.params:
                raise UserError(f"search.when has no parameter '{name}'.{suggest(name, self.params)}")
        for name, grammar in self.params.items():
            if isinstance(grammar, (list, dict)):
                raise UserError(f"search.params.{name} is no word of Hydra's grammar: write choice(…).")
        for name, values in self.first_that_fits.items():
            if not values:
                raise UserError(f"search.first_that_fits.{name} has no values to try.")


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
        self.distributions: dict[str, BaseDistribution] = {}
        self.fixed: dict[str, str] = {name: spelled(value) for name, value in plan.fixed.items()}
        self.deleted: list[str] = []
        for name, grammar in plan.params.items():
            self._take(parsed(parser, f"{name}={grammar}"))
        for word in typed:
            self._take(parsed(parser, word))
        # what only the command line has comes first, so that the file's conditions may look at it
        self.distributions = dict(sorted(self.distributions.items(), key=lambda one: one[0] in plan.params))
        self.when = {name: needs for name, needs in plan.when.items() if name in self.distributions}
        self.multiples = plan.multiples
        self.first_that_fits = {
            name: values
            for name, values in plan.first_that_fits.items()
            if name not in (*self.distributions, *self.fixed)
        }
        self.base = compose(self.words({}))
        self._refuse_loose_conditions(known={*plan.params, *self.first_that_fits})
        self._counts: dict[tuple[Any, ...], int] = {}

    @property
    def continuous(self) -> list[str]:
        """The parameters with more values than can be counted."""
        kinds = self.distributions.items()
        return [name for name, kind in kinds if isinstance(kind, FloatDistribution) and kind.step is None]

    def asks_for(self, name: str, values: Values) -> bool:
        """Say whether `name` matters where the parameters before it have these values."""
        return all(
            any(same(self.value_of(other, values), one) for one in wanted)
            for other, wanted in self.when.get(name, {}).items()
        )

    def misfit(self, values: Values) -> str | None:
        """Say why these values don't go together, as far as the plan tells; None if they do."""
        for name, divisor in self.multiples.items():
            pair = self.value_of(name, values), self.value_of(divisor, values)
            if all(isinstance(one, int) and one for one in pair) and pair[0] % pair[1]:
                return f"{name}={pair[0]} is no multiple of {divisor}={pair[1]}."
        return None

    def words(self, values: Values) -> list[str]:
        """Return what would be typed for a trial with these values."""
        said = {**self.fixed, **{name: written(value) for name, value in values.items()}}
        return [*(f"{name}={value}" for name, value in said.items()), *self.deleted]

    def value_of(self, key: str, values: Values) -> Any:
        """Return a key's value in a trial: asked for, fixed, or as the configuration has it; or NOT_THERE.

        A parameter that isn't asked for in this trial has none, whatever its default: its key may not exist there.
        """
        if key in values:
            return meaning(values[key])
        if key in self.distributions:
            return NOT_THERE
        if key in self.base.choices:
            return self.base.choices[key]
        value = OmegaConf.select(self.base, key, default=NOT_THERE)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    # ---- the grid: never held, since a few parameters make millions of combinations ------------------

    def size(self) -> int:
        """Return how many combinations of values the conditions leave.

        Raises:
            UserError: a parameter has more values than can be counted.
        """
        if self.continuous:
            raise UserError(
                f"{self.continuous[0]} has more values than a grid can hold: give it a few, such as"
                f" '{self.continuous[0]}=choice(…)', or choose another hydra/sweeper/sampler."
            )
        return self._count(0, {})

    def size_without_conditions(self) -> int:
        return math.prod(map(len, self._choices.values()))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Return every combination that the conditions leave; the parameters written last change fastest."""
        return map(self.combination, range(self.size()))

    def combination(self, index: int) -> dict[str, Any]:
        """Return the combination with this place in the grid."""
        values: dict[str, Any] = {}
        for depth, (name, options) in enumerate(self._choices.items()):
            if not self.asks_for(name, values):
                continue
            if name not in self._looked_at[depth + 1]:
                place, index = divmod(index, self._count(depth + 1, values))
                values[name] = options[place]
                continue
            for value in options:
                below = self._count(depth + 1, {**values, name: value})
                if index < below:
                    values[name] = value
                    break
                index -= below
        return values

    def _count(self, depth: int, values: dict[str, Any]) -> int:
        """Return how many combinations of the parameters from `depth` on go with the values before them."""
        if depth == len(self._choices):
            return self.misfit(values) is None
        key = (depth, *(values.get(name, NOT_THERE) for name in self._looked_at[depth]))
        if key not in self._counts:
            name, options = list(self._choices.items())[depth]
            if not self.asks_for(name, values):
                self._counts[key] = self._count(depth + 1, values)
            elif name not in self._looked_at[depth + 1]:
                self._counts[key] = len(options) * self._count(depth + 1, values)
            else:
                self._counts[key] = sum(self._count(depth + 1, {**values, name: one}) for one in options)
        return self._counts[key]

    @functools.cached_property
    def _choices(self) -> dict[str, Sequence[Any]]:
        return {name: choices(kind) for name, kind in self.distributions.items()}

    @functools.cached_property
    def _looked_at(self) -> list[list[str]]:
        """For each place in the order: the parameters before it at which something from there on looks."""
        order, of_multiples = list(self.distributions), {*self.multiples, *self.multiples.values()}
        found = []
        for depth in range(len(order) + 1):
            later = of_multiples.union(*(self.when.get(name, {}) for name in order[depth:]))
            found.append([name for name in order[:depth] if name in later])
        return found

    # ---- how it's made -------------------------------------------------------------------------------

    def _take(self, override: Override) -> None:
        """Take one word: what comes later wins, in the place of what came before."""
        name = override.get_key_element()
        bare = name.lstrip("+~")
        if override.is_delete():
            self._forget(bare)
            self.deleted.append(override.input_line)
        elif override.is_sweep_override():
            kind = distribution(override)
            if bare in self.distributions and name == bare:
                self.distributions[name] = kind
            else:
                self._forget(bare)
                self.distributions[name] = kind
        else:
            self._forget(bare)
            self.fixed[name] = override.get_value_element_as_str()

    def _forget(self, bare: str) -> None:
        for name in (bare, f"+{bare}", f"++{bare}"):
            self.distributions.pop(name, None)
            self.fixed.pop(name, None)

    def _refuse_loose_conditions(self, known: set[str]) -> None:
        order = list(self.distributions)
        for name, needs in self.when.items():
            for other in needs:
                if other in order and order.index(other) >= order.index(name):
                    raise UserError(
                        f"search.when.{name} looks at {other}, which is asked for later: write {other} first."
                    )
        looks = [(f"search.when.{name}", other) for name, needs in self.when.items() for other in needs]
        looks += [("search.multiples", name) for pair in self.multiples.items() for name in pair]
        for place, name in looks:
            if name not in known and self.value_of(name, {}) is NOT_THERE and not self._may_appear(name):
                raise UserError(
                    f"{place} looks at {name}, which nothing here is called.{suggest(name, known)}"
                )

    def _may_appear(self, key: str) -> bool:
        """Whether a key may be one of an option's that isn't the default's: the option is drawn, or was typed."""
        groups = (
            name.replace("/", ".")
            for name in (*self.distributions, *self.fixed)
            if "/" in name or "." not in name
        )
        return key in self.distributions or any(key.startswith(f"{group}.") for group in groups)


def parsed(parser: OverridesParser, word: str) -> Override:
    try:
        return parser.parse_overrides([word])[0]
    except HydraException as error:
        if "NoneType" in str(error):
            raise UserError(
                f"Can't read {word}: null goes without a function, as in {word.split('=')[0]}=null,1."
            ) from error
        raise UserError(f"Can't read {word}: {first_line(error)}.") from error


def distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution for a word such as `model.dim=choice(64,128)`."""
    try:
        if override.is_choice_sweep() or not (override.is_range_sweep() or override.is_interval_sweep()):
            return categorical(list(override.sweep_iterator(as_word)))  # choice(…) or glob(…)
        kind = create_optuna_distribution_from_override(override)
        if not all(math.isfinite(end) for end in (kind.low, kind.high)):
            raise ValueError("its ends must be finite numbers")
        return kind
    except (ValueError, AssertionError, NotImplementedError, HydraException) as error:
        raise UserError(f"Can't search {override.input_line}: {first_line(error)}.") from error


def categorical(values: list[Any]) -> CategoricalDistribution:
    """Return the choice between `values`. ValueError if there is none, one is NaN, or one is there twice."""
    if not values:
        raise ValueError("it has no values")
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        raise ValueError("NaN is no value to try")
    for word, count in Counter(map(written, values)).items():
        if count > 1:
            raise ValueError(f"{word} is there more than once")
    return CategoricalDistribution(values)


def as_word(value: ParsedElementType) -> Any:
    """Return a number as it is, and anything else as what is typed for it: Optuna keeps nothing but plain values."""
    if isinstance(value, (bool, int, float)):
        return value
    word = Override._get_value_element_as_str(value)
    bare = word.replace("\\ ", " ")  # Hydra puts a backslash before each blank, which most do without
    return bare if means_the_same(bare, word) else word


def choices(kind: BaseDistribution) -> Sequence[Any]:
    """Return the values of a distribution that has a countable number of them."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices
    if isinstance(kind, IntDistribution) and not kind.log:
        return range(kind.low, kind.high + 1, kind.step)
    if isinstance(kind, IntDistribution):
        return range(kind.low, kind.high + 1)
    # 0.3, and not 0.1 + 0.1 + 0.1
    low, high, step = (Decimal(str(one)) for one in (kind.low, kind.high, kind.step))
    return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


def spelled(value: Any) -> str:
    """Return a value out of a file as it's typed: in quotes where a bare string would be read as something else."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{spelled(one)}' for name, one in value.items())}}}"
    if isinstance(value, str) and not is_plain(value):
        return QuotedString(value, Quote.single).with_quotes()
    return written(value)


def is_plain(text: str) -> bool:
    """Whether Hydra reads a string from these characters, and from each place inside a list too."""
    try:
        return read(f"[{text}]") == [text]
    except HydraException:
        return False


def means_the_same(one: str, other: str) -> bool:
    try:
        return read(one) == read(other)
    except HydraException:
        return False


@functools.cache
def read(word: str) -> Any:
    return OverridesParser.create().parse_override(f"x={word}").value()


def meaning(value: Any) -> Any:
    """Return what Hydra reads from a parameter's value: choice('a b',null) has words, a string and None are meant."""
    return read(value) if isinstance(value, str) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal; unlike in Python, true is no number."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
