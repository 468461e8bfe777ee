"""Numbers with units, formatted for people; a dash if there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
AT_MOST = "≤"
ABOUT_BOUNDS = (
    f"{AT_MOST} marks an upper bound: the model's bits per byte are at most that"
    " many. A bound below an exact value proves that an arm is better; a bound above one proves nothing."
)
PREFIXES = ("", "k", "M", "G", "T", "P")
BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB")
MIB = 2**20


def finite(value: float | None) -> float | None:
    """Return a finite number, and None for NaN, infinity or None."""
    return value if value is not None and math.isfinite(value) else None


def count(value: float | None) -> str:
    """Format a count: 39,008 or 282 k or 5.78 G."""
    if finite(value) is None:
        return NONE
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    thousands = min(int(math.log10(abs(value)) / 3), len(PREFIXES) - 1)
    return f"{value / 1000**thousands:.4g} {PREFIXES[thousands]}"


def memory(value: float | None) -> str:
    """Format bytes in a suitable unit: 1.5 GiB."""
    if finite(value) is None:
        return NONE
    power = min(int(math.log2(max(1.0, value)) / 10), len(BINARY) - 1)
    return f"{value / 1024**power:,.3g} {BINARY[power]}" if power else f"{value:,.0f} bytes"


def mib(value: float) -> str:
    """Format bytes in MiB whatever their size, so that numbers can be compared."""
    return f"{value / MIB:,.0f} MiB"


def duration(value: float | None, *, tenths: bool = True) -> str:
    """Format a duration as seconds, minutes or hours; below ten seconds with `tenths`."""
    if finite(value) is None:
        return NONE
    if value < 59.5:
        return f"{value:.1f} s" if tenths and value < 10 else f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def bits(value: float | None) -> str:
    """Format bits per byte."""
    return NONE if finite(value) is None else f"{value:.4f}"


def share(value: float | None) -> str:
    """Format a share: 99.6 %."""
    return NONE if finite(value) is None else f"{100 * value:.1f} %"


def marked(text: str, bound: object) -> str:
    """Mark a formatted loss if it is an upper bound according to `val_bound`: ≤ 1.0312."""
    return f"{AT_MOST} {text}" if bound == "upper" and text != NONE else text


def rate(value: float | None) -> str:
    """Format a learning rate."""
    return NONE if finite(value) is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """Format a difference in bits per byte."""
    return NONE if finite(value) is None else f"{value:+.4f}"


def between(ends: Sequence[float | None]) -> str:
    """Format an interval of differences in bits per byte; a dash unless both ends are known."""
    return NONE if None in map(finite, ends) else f"{signed(ends[0])} to {signed(ends[1])}"


def p_value(value: float) -> str:
    """Format a p-value: 0.012 or < 0.0001."""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"
