"""Solve for the widths, or the number of layers, with which a model meets a target size.

The size grows with each of these numbers, so it is bracketed and then found by the secant method. Each candidate model
is built on the meta device and measured. Invalid numbers, such as a width that isn't a multiple of the number of heads,
are skipped.
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
from minllm.model.unused import words_said
from minllm.schema.building import build

if TYPE_CHECKING:
    from minllm.model.size import Size

Sizes = Mapping[str, int | None]
"""Keys of the configuration and what they are set to: {"model.dim": 176, "model.n_layers": 4, …}."""
Figure = Callable[[int], float | None]
"""The measured size at a number; None if no model can be built."""

LAST = {"model.dim": 2**16, "model.n_layers": 2**8, "hidden": 2**20}
"""Upper limits of the search: larger models are too large for any supported machine."""
TRIES = 128
"""Invalid numbers before the search gives up: GPT-J's heads accept one width in this many."""
NEIGHBOURS = 4
"""Number of widths around the target, the nearest first, for which hidden widths are fitted."""


def solve(cfg: DictConfig, size: Size) -> tuple[Sizes, float]:
    """Return settings within tolerance of the target, or else the nearest ones found, and their measured size.

    Raises:
        UserError: no model can be built, or there is nothing to change.
    """
    measure = Measure(cfg, size.target)
    best: tuple[Sizes, float] | None = None
    for settings in candidates(measure, configured(cfg), size):
        figure = measure(settings)
        if best is None or size.off(figure) < size.off(best[1]):
            best = settings, figure
        if size.off(figure) <= size.within:
            break
    if best is None:
        raise UserError(
            "size.by=hidden changes the hidden width of MLPs, but this model has none that can be changed: use"
            " size.by=width or size.by=layers instead."
        )
    return best


def configured(cfg: DictConfig) -> Sizes:
    """Return the configured values of what may be changed: width, layers, and hidden widths that aren't references."""
    said, _ = words_said(cfg.model)
    nodes = [(f"model.{word}", cfg.model[word]) for word in cfg.model if word in said or word == "encoder"]
    keys = ["model.dim", "model.n_layers", *(key for path, node in nodes for key in hidden_keys(node, path))]
    return {key: OmegaConf.select(cfg, key) for key in keys}


def hidden_keys(node: DictConfig, path: str) -> Iterator[str]:
    if "hidden" in list(node) and not OmegaConf.is_interpolation(node, "hidden"):
        yield f"{path}.hidden"
    for name in node:
        if OmegaConf.is_dict(node[name]):
            yield from hidden_keys(node[name], f"{path}.{name}")


class Measure:
    """Measures `target` of the configured model under settings, without allocating it."""

    def __init__(self, cfg: DictConfig, target: str):
        self.cfg, self.target = cfg.copy(), target
        self.vocab_size = build(cfg.tokenizer).vocab_size
        self.known: dict[tuple[object, ...], float | UserError] = {}

    def __call__(self, settings: Sizes, target: str | None = None) -> float:
        """Return the size, by another `target` if given. Raises UserError if the model can't be built."""
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
    """Return the size of a model by one target, at sequences of `seq_len` tokens.

    Raises:
        UserError: the model has no state, because it can't generate.
    """
    if target == "state_bytes":
        state = cost.state_bytes(model, 1, seq_len)
        if state is None:
            raise UserError(
                f"size.state_bytes can't be met, because this model has no state. {model.cannot_generate}"
            )
        return state
    return (
        cost.flops_per_token(model, seq_len) if target == "flops_per_token" else getattr(cost, target)(model)
    )


# ---- candidates ----------------------------------------------------------------------------------


def candidates(measure: Measure, start: Sizes, size: Size) -> Iterator[Sizes]:
    """Yield settings near the target, most promising first: changed by `size.by`, then with hidden widths fitted."""
    if size.by == "hidden":
        yield from fitted(measure, start, size.wanted)
        return
    key, resized = ("model.dim", wider) if size.by == "width" else ("model.n_layers", deeper)
    search = functools.partial(nearest, measure, functools.partial(resized, start), start[key], LAST[key])
    for settings in search(size.wanted, NEIGHBOURS):
        yield settings
        if size.wanted / 4 < measure(settings) < size.wanted * 4:  # else a hidden width can't make up for it
            yield from fitted(measure, settings, size.wanted)


def wider(settings: Sizes, dim: int) -> Sizes:
    """Return the settings at another width, with hidden widths in proportion; those that are null scale already."""
    widths = {key: value for key, value in settings.items() if key.endswith(".hidden") and value is not None}
    scale = dim / settings["model.dim"]
    return {
        **settings,
        "model.dim": dim,
        **{key: max(1, round(value * scale)) for key, value in widths.items()},
    }


def deeper(settings: Sizes, n_layers: int) -> Sizes:
    return {**settings, "model.n_layers": n_layers}


def fitted(measure: Measure, settings: Sizes, wanted: float) -> Iterator[Sizes]:
    """Yield the settings with all hidden widths scaled by one factor, so that the size is near the target."""
    widths = {key: hidden_width(measure, settings, key) for key in settings if key.endswith(".hidden")}
    if not widths:
        return
    largest = max(widths.values())

    def scaled(n: int) -> Sizes:
        return {**settings, **{key: max(1, round(width * n / largest)) for key, width in widths.items()}}

    yield from nearest(measure, scaled, largest, LAST["hidden"], wanted, 2)


def hidden_width(measure: Measure, settings: Sizes, key: str) -> int:
    """Return a hidden width. If it is null, the width is inferred from the number of parameters, which is linear."""
    if settings[key] is not None:
        return settings[key]
    none, one, two = (measure({**settings, key: width}, "params") for width in (None, 1, 2))
    return max(1, 1 + round((none - one) / max(1, two - one)))


# ---- one-dimensional search ----------------------------------------------------------------------


def nearest(
    measure: Measure,
    settings_of: Callable[[int], Sizes],
    start: int,
    last: int,
    wanted: float,
    count: int,
) -> Iterator[Sizes]:
    """Yield settings for the `count` numbers up to `last` whose size is nearest to the target, the nearest first.

    Raises:
        UserError: no model can be built around `start`; this is the error of `start` itself.
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
    """Return where the size would equal the target, between two neighbouring valid numbers.

    This is the first or last number if the target is out of range, or if the size doesn't grow.
    """
    low, high = bracket(figure, start, numbers, wanted)
    for step in itertools.count():
        if figure(low) == wanted or low == high:
            break
        share = (wanted - figure(low)) / (figure(high) - figure(low))
        secant = low + share * (high - low)
        # secants of a curved function may converge slowly from one side, so bisect now and then
        n = buildable(figure, (low + high) / 2 if step % 3 == 2 else secant, range(low + 1, high))
        if n is None:
            return secant
        low, high = (n, high) if figure(n) <= wanted else (low, n)
    return low


def bracket(figure: Figure, start: int, numbers: range, wanted: float) -> tuple[int, int]:
    """Return two numbers whose sizes bracket the target; the same one twice if it is out of range."""
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
    """Return the number nearest to `middle` for which a model can be built; None if there is none nearby."""
    tried = itertools.islice(outward(middle, numbers), TRIES)
    return next((n for n in tried if figure(n) is not None), None)


def outward(middle: float, numbers: range) -> Iterator[int]:
    """Return numbers in order of their distance from `middle`."""
    split = min(max(math.ceil(middle), numbers.start), numbers.stop)
    below, above = range(split - 1, numbers.start - 1, -1), range(split, numbers.stop)
    return heapq.merge(below, above, key=lambda n: abs(n - middle))
