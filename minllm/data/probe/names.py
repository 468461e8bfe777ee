"""Names of several symbols, the last of which is from letters of its own, so that it's known where a name ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minllm.data.probe.draw import Draw


def pieces(letters: int) -> list[str]:
    """Return the symbols of names: those inside, and those at the end."""
    return [f"{place}{n}" for place in ("n", "e") for n in range(letters)]


def drawn_names(draw: Draw, count: int, letters: int, shortest: int, longest: int) -> list[tuple[str, ...]]:
    """Draw different names of `shortest` to `longest` symbols."""
    names: dict[tuple[str, ...], None] = {}
    while len(names) < count:
        length = draw.between(shortest, longest)
        inside = [f"n{draw.below(letters)}" for _ in range(length - 1)]
        names[(*inside, f"e{draw.below(letters)}")] = None
    return list(names)


def possible_names(letters: int, shortest: int, longest: int) -> int:
    return sum(letters**length for length in range(shortest, longest + 1))


def names_in(symbols: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the names that symbols consist of."""
    name: list[str] = []
    for symbol in symbols:
        name.append(symbol)
        if symbol.startswith("e"):
            yield tuple(name)
            name = []
