"""Which numbers in a text stand in a report: those that a judge writes about it are looked up in its JSON.

    "0.312 bits, 4.1 % lower (p = 2e-4), over 12 seeds"       four numbers, each with the precision that is shown

A number stands in the report if a value, rounded as the text shows it, is that number. Two decimals of many values are
met by chance, so at least the value must be met to within 5 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CLOSE = 0.05
"""The largest relative error of a rounded number."""

SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
SCALES |= {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
PERCENT = ("%", "percent", "per cent")

SPACES = "\u00a0\u2009\u202f "
NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]%.])[-+−])?
    (?P<whole>\d{{1,3}}(?:[,'{SPACES}]\d{{3}})+(?!\d)|\d+|(?<!\d)(?=\.\d))
    (?P<fraction>\.\d+)?
    (?P<exponent>[eE][-+−]?\d+|\s?[×x*]\s?10(?:\^|\*\*)?\{{?(?P<power>[-+−]?\d+)\}}?)?
    (?:[{SPACES}]?(?P<unit>%|(?:percent|per\ cent|thousand|million|billion|trillion|[kKMGBT])(?![a-zA-Z])))?
    """,
    re.VERBOSE,
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

ONES = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
IN_WORDS: dict[str, float] = {word: float(value) for value, word in enumerate(ONES.split(), 2)}
IN_WORDS |= {word: 10.0 * tens for tens, word in enumerate(TENS.split(), 2)}
IN_WORDS |= {"zero": 0.0, "dozen": 12.0, "hundred": 100.0, "thousand": 1000.0, "million": 1e6}
RATIOS = (
    "half halved halves quarter twice double doubled doubles twofold thrice triple tripled threefold tenfold"
)
"""These claim a ratio that somebody computed, which is nowhere in a report."""
IN_WORDS |= dict.fromkeys(RATIOS.split(), math.nan)
WORD = re.compile(rf"\b({'|'.join(IN_WORDS)})\b", re.IGNORECASE)
NAME = re.compile(r"[^\s,;()\[\]{}\"“”]*[^\W\d_][^\s,;()\[\]{}\"“”]*")
"""A word with at least one letter."""


@dataclass(frozen=True)
class Figure:
    """A number in a text.

    text: as it stands there
    start, end: its place
    value: what it says
    step: the unit of its last digit
    sign: "+" or "-" if it's written
    is_percent: whether it's a percentage
    """

    text: str
    start: int
    end: int
    value: float
    step: float
    sign: str = ""
    is_percent: bool = False


class Report:
    """The numbers and names of a report."""

    def __init__(self, content: Mapping[str, Any]):
        values, names = set(lengths(content)), set()
        for text in strings(content):
            names |= {name for name in map(trimmed, NAME.findall(text)) if any(map(str.isdigit, name))}
            values |= set(values_in(text))
        values |= {float(value) for value in leaves(content) if is_number(value)}
        self.values = np.array(sorted(values))
        ordered = sorted((name for name in names if not reads_as_number(name)), key=len, reverse=True)
        alternatives = "|".join(map(re.escape, ordered))
        self.names = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if ordered else None

    def unknown(self, text: str) -> list[Figure]:
        """Return the numbers of a text that don't stand in the report, in their order."""
        without_names = self.names.sub(lambda match: "\0" * len(match[0]), text) if self.names else text
        return [figure for figure in figures(without_names) if not self.has(figure)]

    def has(self, figure: Figure) -> bool:
        """Whether a value of the report, rounded as the figure is, equals it."""
        values = self.values * 100 if figure.is_percent else self.values
        if figure.sign:
            values = values[values < 0] if figure.sign == "-" else values[values > 0]
        sizes = np.abs(values)
        limits = np.minimum(figure.step / 2, CLOSE * sizes) + 1e-9 * sizes
        return bool((np.abs(sizes - figure.value) <= limits).any())


def figures(text: str) -> list[Figure]:
    """Return the numbers of a text, in digits and in words."""
    plain = text.translate(SUPERSCRIPTS)
    in_digits = [figure_of(match) for match in NUMBER.finditer(plain)]
    taken = [(figure.start, figure.end) for figure in in_digits]
    in_words = [
        Figure(match[0], *match.span(), IN_WORDS[match[0].lower()], 0.0)
        for match in WORD.finditer(text)
        if not any(start <= match.start() < end for start, end in taken)
    ]
    return sorted(in_digits + in_words, key=lambda figure: figure.start)


def figure_of(match: re.Match[str]) -> Figure:
    whole = re.sub(r"\D", "", match["whole"]) or "0"
    fraction = match["fraction"] or ""
    exponent = match["power"] or (match["exponent"] or "e0")[1:]
    unit = match["unit"] or ""
    scale = 10.0 ** int(exponent.replace("−", "-")) * SCALES.get(unit, 1.0)
    sign = (match["sign"] or "").replace("−", "-")
    step = 10.0 ** -max(0, len(fraction) - 1) * scale
    return Figure(match[0], *match.span(), float(whole + fraction) * scale, step, sign, unit in PERCENT)


# ---- what stands in a report ---------------------------------------------------------------------


def leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, Mapping):
        for value in content.values():
            yield from leaves(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from leaves(value)
    else:
        yield content


def strings(content: Any) -> Iterator[str]:
    """Yield all texts of a report, its keys included."""
    yield from (value for value in leaves(content) if isinstance(value, str))
    yield from keys(content)


def keys(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from keys(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from keys(value)


def lengths(content: Any) -> Iterator[float]:
    """Yield how many entries each list has, such as the number of arms."""
    if isinstance(content, Mapping):
        for value in content.values():
            yield from lengths(value)
    elif isinstance(content, list | tuple):
        yield float(len(content))
        for value in content:
            yield from lengths(value)


def values_in(text: str) -> Iterable[float]:
    """Yield the numbers in a text of the report; of 95 %, both 95 and 0.95."""
    for figure in figures(text):
        if math.isnan(figure.value):
            continue
        value = -figure.value if figure.sign == "-" else figure.value
        yield value
        if figure.is_percent:
            yield value / 100


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def trimmed(name: str) -> str:
    return name.strip(".:!?'%")


def reads_as_number(name: str) -> bool:
    """Whether a name is a number with a unit or an exponent, such as 3e-4 or 12M, and thus to be checked."""
    return re.fullmatch(r"[-+−]?[\d.,']+(?:[eE][-+−]?\d+)?[a-zA-Zµ%]{0,3}", name) is not None
