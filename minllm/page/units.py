"""Figures as people read them; a dash where there is none."""

from __future__ import annotations

import math

NONE = "–"
PREFIXES = ("", "k", "M", "G", "T", "P")
BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB")
MIB = 2**20


def finite(value: float | None) -> float | None:
    """Return a number that is one, and None for any other."""
    return value if value is not None and math.isfinite(value) else None


def count(value: float | None) -> str:
    """Return a number of things: 39,008 or 282 k or 5.78 G."""
    if finite(value) is None:
        return NONE
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    thousands = min(int(math.log10(abs(value)) / 3), len(PREFIXES) - 1)
    return f"{value / 1000**thousands:.4g} {PREFIXES[thousands]}"


def memory(value: float | None) -> str:
    """Return bytes in the unit that suits them: 1.5 GiB."""
    if finite(value) is None:
        return NONE
    power = min(int(math.log2(max(1.0, value)) / 10), len(BINARY) - 1)
    return f"{value / 1024**power:,.3g} {BINARY[power]}" if power else f"{value:,.0f} bytes"


def mib(value: float) -> str:
    """Return bytes in MiB whatever they are, for what is compared."""
    return f"{value / MIB:,.0f} MiB"


def duration(value: float | None, *, tenths: bool = True) -> str:
    """Return seconds, minutes or hours; of less than ten seconds, `tenths` too."""
    if finite(value) is None:
        return NONE
    if value < 59.5:
        return f"{value:.1f} s" if tenths and value < 10 else f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def bits(value: float | None) -> str:
    """Return bits a byte."""
    return NONE if finite(value) is None else f"{value:.4f}"


def rate(value: float | None) -> str:
    """Return a learning rate."""
    return NONE if finite(value) is None else f"{value:.4g}"
