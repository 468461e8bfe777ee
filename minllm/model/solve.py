"""Finds the widths, or the number of layers, with which a model measures what is wanted.

A figure grows with each of these numbers, so it's bracketed and closed in on by secants. How it grows is the model's
own business: it's built, as shapes without values, and measured. Numbers that a model refuses, such as a width that
its heads can't share, are passed by.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.model import cost
from minllm.model.build import build_shapes
from minllm.model.lm import LM
from minllm.schema.building import build

if TYPE_CHECKING:
    from minllm.model.size import Size

Settings = Mapping[str, int | None]
"""Keys of the configuration and what they are set to: {"model.dim": 176, "model.n_layers": 4, …}."""
Figure = Callable[[int], float | None]
"""The figure at a number; None where it makes no model."""

LAST = {"model.dim": 2**16, "model.n_layers": 2**8, "hidden": 2**20}
"""Where the search ends: beyond, no machine that this is meant for could hold the model."""
TRIES = 128
"""Numbers that are refused before the search gives up: GPT-J's heads take a width in so many, and none takes fewer."""
NEIGHBOURS = 4
"""Widths around the target, the nearest first, for each of which hidden widths are fitted until one will do."""


def solve(cfg: DictConfig, size: Size) -> tuple[Settings, float]:
    """Return the settings that come near enough to the size, or else the nearest that were found; and their figure.

    Raises:
        UserError: no setting makes a model, or there's nothing to set.
    """
    measure = Measure(cfg, size.target)
    best: tuple[Settings, float] | None = None
    for settings in candidates(measure, configured(cfg), size):
        figure = measure(settings)
        if best is None or size.off(figure) < size.off(best[1]):
            best = settings, figure
        if size.off(figure) <= size.within:
            break
    if best is None:
        raise UserError(
            "size.by=hidden changes the hidden width of MLPs, and this model has none that it could change: type"
            " size.by=width or size.by=layers instead."
        )
    return best


def configured(cfg: DictConfig) -> Settings:
    """Return what may be solved, as it is configured: width, layers, and the hidden widths that no key follows."""
    said = {
        word
        for sentence in [*cfg.model.first, *cfg.model.layout]
        for word in sentence.replace("+", " ").split()
    }
    nodes = [(f"model.{word}", cfg.model[word]) for word in cfg.model if word in said]
    keys = ["model.dim", "model.n_layers", *(key for path, node in nodes for key in hidden_keys(node, path))]
    return {key: OmegaConf.select(cfg, key) for key in keys}


def hidden_keys(node: DictConfig, path: str) -> Iterator[str]:
    if "hidden" in list(node) and not OmegaConf.is_interpolation(node, "hidden"):
        yield f"{path}.hidden"
    for name in node:
        if OmegaConf.is_dict(node[name]):
            yield from hidden_keys(node[name], f"{path}.{name}")


class Measure:
    """The figure `target` of the model that a configuration describes, under settings: nothing is allocated."""

    def __init__(self, cfg: DictConfig, target: str):
        self.cfg, self.target = cfg.copy(), target
        self.vocab_size = build(cfg.tokenizer).vocab_size
        self.known: dict[tuple[object, ...], float | UserError] = {}

    def __call__(self, settings: Settings, target: str | None = None) -> float:
        """Return the figure, or another one. UserError if no model can be built so."""
        target = target or self.target
        key = (target, *settings.values())
        if key not in self.known:
            for name, value in settings.items():
                OmegaConf.update(self.cfg, name, value)
            try:
                model = build_shapes(self.cfg, self.vocab_size)
                self.known[key] = figure_of(model, target, self.cfg.data.seq_len)
            except UserError as error:
                self.known[key] = error
        if isinstance(self.known[key], UserError):
            raise self.known[key]
        return self.known[key]


def figure_of(model: LM, target: str, seq_len: int) -> float:
    """Return one figure of a model at sequences of `seq_len` tokens: a number of things, or bytes.

    Raises:
        UserError: the model has no state, since it can't generate.
    """
    if target == "state_bytes":
        state = cost.state_bytes(model, 1, seq_len)
        if state is None:
            raise UserError(f"size.state_bytes can't be met by what has no state. {model.cannot_generate}")
        return state
    return (
        cost.flops_per_token(model, seq_len) if target == "flops_per_token" else getattr(cost, target)(model)
    )


# ---- what is tried -------------------------------------------------------------------------------


def candidates(measure: Measure, start: Settings, size: Size) -> Iterator[Settings]:
    """Yield settings near the size, the best bets first: as `size.by` says, and then with hidden widths fitted."""
    if size.by == "hidden":
        yield from fitted(measure, start, size.wanted)
        return
    key, resized = ("model.dim", wider) if size.by == "width" else ("model.n_layers", deeper)
    search = functools.partial(nearest, measure, functools.partial(resized, start), start[key], LAST[key])
    for settings in search(size.wanted, NEIGHBOURS):
        yield settings
        if size.wanted / 4 < measure(settings) < size.wanted * 4:  # else a hidden width can't make up for it
            yield from fitted(measure, settings, size.wanted)


def wider(settings: Settings, dim: int) -> Settings:
    """Return the settings at another width, to which all hidden widths keep their proportion; null does by itself."""
    widths = {key: value for key, value in settings.items() if key.endswith(".hidden") and value is not None}
    scale = dim / settings["model.dim"]
    return {
        **settings,
        "model.dim": dim,
        **{key: max(1, round(value * scale)) for key, value in widths.items()},
    }


def deeper(settings: Settings, n_layers: int) -> Settings:
    return {**settings, "model.n_layers": n_layers}


def fitted(measure: Measure, settings: Settings, wanted: float) -> Iterator[Settings]:
    """Yield the settings with all hidden widths changed in proportion, so that the figure is near what is wanted."""
    widths = {key: hidden_width(measure, settings, key) for key in settings if key.endswith(".hidden")}
    if not widths:
        return
    largest = max(widths.values())

    def scaled(n: int) -> Settings:
        return {**settings, **{key: max(1, round(width * n / largest)) for key, width in widths.items()}}

    yield from nearest(measure, scaled, largest, LAST["hidden"], wanted, 2)


def hidden_width(measure: Measure, settings: Settings, key: str) -> int:
    """Return a hidden width. What null stands for, the parameters tell, which are in proportion to it."""
    if settings[key] is not None:
        return settings[key]
    none, one, two = (measure({**settings, key: width}, "params") for width in (None, 1, 2))
    return max(1, 1 + round((none - one) / max(1, two - one)))


# ---- one number that a figure grows with ---------------------------------------------------------


def nearest(
    measure: Measure,
    settings_of: Callable[[int], Settings],
    start: int,
    last: int,
    wanted: float,
    count: int,
) -> Iterator[Settings]:
    """Yield settings of the few numbers up to `last` whose figure is nearest to what is wanted, the nearest first.

    Raises:
        UserError: none can be built around `start`; it's the refusal of `start` itself.
    """

    def figure(n: int) -> float | None:
        try:
            return measure(settings_of(n))
        except UserError:
            return None

    numbers = range(1, last + 1)
    start = buildable(figure, start, numbers) or start
    measure(settings_of(start))
    middle = crossing(figure, start, numbers, wanted)
    around = (n for n in itertools.islice(outward(middle, numbers), count * TRIES) if figure(n) is not None)
    yield from map(settings_of, itertools.islice(around, count))


def crossing(figure: Figure, start: int, numbers: range, wanted: float) -> float:
    """Return where the figure would be what is wanted, between two numbers that have none between them.

    It's the first or the last number where what is wanted lies beyond, or where the figure doesn't grow.
    """
    low, high = bracket(figure, start, numbers, wanted)
    for step in itertools.count():
        if figure(low) == wanted or low == high:
            break
        share = (wanted - figure(low)) / (figure(high) - figure(low))
        secant = low + share * (high - low)
        # a curved figure's secants may creep up from one side; halving now and then ends that
        n = buildable(figure, (low + high) / 2 if step % 3 == 2 else secant, range(low + 1, high))
        if n is None:
            return secant
        low, high = (n, high) if figure(n) <= wanted else (low, n)
    return low


def bracket(figure: Figure, start: int, numbers: range, wanted: float) -> tuple[int, int]:
    """Return two numbers with what is wanted between their figures; the same one twice where it lies beyond."""
    low = high = start
    while figure(low) > wanted:
        n = buildable(figure, low // 2, range(numbers.start, low))
        if n is None:
            return low, low
        low, high = n, low
    while figure(high) < wanted:
        n = buildable(figure, 2 * high, range(high + 1, numbers.stop))
        if n is None or figure(n) <= figure(high):
            return high, high
        low, high = high, n
    return low, high


def buildable(figure: Figure, middle: float, numbers: range) -> int | None:
    """Return the number nearest to `middle` that makes a model; None if none around does."""
    tried = itertools.islice(outward(middle, numbers), TRIES)
    return next((n for n in tried if figure(n) is not None), None)


def outward(middle: float, numbers: range) -> Iterator[int]:
    """Return numbers in the order of how far they are from `middle`."""
    split = min(max(math.ceil(middle), numbers.start), numbers.stop)
    below, above = range(split - 1, numbers.start - 1, -1), range(split, numbers.stop)
    return heapq.merge(below, above, key=lambda n: abs(n - middle))
