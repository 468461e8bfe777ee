"""Overrides on the command line, `key=value`: parsing, quoting and short names.

Hydra is imported only where its grammar is needed, so that --help is fast.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from minllm.errors import UserError, suggest

UNSET = " If it comes from a shell variable, that variable isn't set."


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_seed(override: str) -> bool:
    return key_of(override) == "seed"


def format_value(value: Any) -> str:
    """Return a configuration value as it is written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def with_runs_data(args: Sequence[str]) -> list[str]:
    """Prefix `data.path=…` with ++ if the command line names a run, whose data it is meant for.

    Hydra composes the default data first, which may not have that option; it is validated against the run's data later.
    """
    names_run = any(arg.startswith(("resume=", "run=")) for arg in args)
    if not names_run or any(arg.startswith("data=") for arg in args):
        return list(args)
    return [f"++{arg}" if arg.startswith("data.") else arg for arg in args]


# ---- short names ---------------------------------------------------------------------------------


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest unambiguous ending of each name: `n_heads` for `model.attn.n_heads`."""
    names = list(dict.fromkeys(names))
    ends = Counter(ending for name in names for ending in endings(name))
    return {name: next((end for end in endings(name) if ends[end] == 1), name) for name in names}


def endings(name: str) -> list[str]:
    """Return the endings of a name that begin at a part of it, the shortest first."""
    starts = [0, *(point.end() for point in re.finditer(r"[./]", name))]
    return [name[start:] for start in reversed(starts)]


# ---- quotes --------------------------------------------------------------------------------------

PLAIN = re.compile(r"[\w./+-]*", re.ASCII)  # values that never need quotes
LONG = 1000  # digits; Python doesn't parse integers of more than 4,300
PROSE = ("prompts",)  # lists of prose: each item is text, even if it looks like a number
ESCAPED = re.compile(r"\\[\\()\[\]{}:=, \t'\"]")  # escapes of Hydra's grammar
CALL = re.compile(r"([A-Za-z_]\w*)( ?)\(.*\)", re.ASCII | re.DOTALL)
OPENED = re.compile(r"([A-Za-z_]\w*)\([^)]*\Z", re.ASCII)
REFERENCE = re.compile(r"\$\{\s*[A-Za-z_.][^{}]*\}")
UNESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


def quoted(override: str) -> str:
    """Add quotes where Hydra's grammar needs them and the override is unambiguous.

    So `prompts=[Don't stop]`, `data.path=notes (1).txt`, `arms.a=[norm=pre]` and `baseline=norm=pre` can be typed
    without quotes. What the grammar accepts keeps its meaning: commas separate values, `${…}` is an interpolation.

    Raises:
        UserError: the override is ambiguous; the message says what to type.
    """
    key, _, value = override.partition("=")
    if key.startswith("-") or (PLAIN.fullmatch(value) and len(value) < LONG) or not key:
        return override
    is_prose = key_of(override) in PROSE and listed(value) is not None
    if not is_prose and read(override) is not UNPARSED:
        return override
    if "=" in value and not is_prose:
        override = f"{key}={','.join(map(value_quoted, parts_of(value)))}"
        if read(override) is not UNPARSED:
            return override
    if read(f"{key}=x") is UNPARSED:
        return override  # the key is invalid, which Hydra reports
    return f"{key}={text_quoted(key, value, is_prose)}"


def comma_note(override: str) -> str | None:
    """Return a note about a list of prompts whose unquoted commas could also be part of one text."""
    key, _, value = override.partition("=")
    text = listed(value)
    parts = parts_of(text) if key_of(override) in PROSE and text is not None else []
    if len(parts) < 2 or all(part.strip()[:1] in ("'", '"') for part in parts):
        return None
    return f"{key} has {len(parts)} items, separated by commas. For one text, type {line(key, value)}"


def line(key: str, value: str) -> str:
    """Return what to type in a shell so that `value`, or the content of its brackets, is one text."""
    text = listed(value)
    return shlex.quote(f"{key}={as_text(value)}" if text is None else f"{key}=[{as_text(text)}]")


def text_quoted(key: str, value: str, is_prose: bool) -> str:
    """Quote the values that Hydra can't parse, or wouldn't parse as text. UserError if they are ambiguous."""
    text = listed(value)
    parts = parts_of(value if text is None else text)
    if text is not None and not text.strip(" \t"):
        return value
    quoted_parts = []
    for part in parts:
        parsed = read(f"x=[{part}]") if part.strip(" \t") else UNPARSED
        as_it_is = is_valid_text(part, parsed) if is_prose else parsed is not UNPARSED
        if not as_it_is and not is_prose and is_call(part, key, value):
            return value  # Hydra reports what is wrong with the arguments
        if not as_it_is and not (
            is_text(part, is_prose) and (parsed is not UNPARSED or not is_prose or len(parts) == 1)
        ):
            raise ambiguity(key, value)
        quoted_parts.append(part if as_it_is else in_quotes(part.strip(" \t")))
    return ",".join(quoted_parts) if text is None else f"[{','.join(quoted_parts)}]"


def is_valid_text(part: str, parsed: Any) -> bool:
    """Whether Hydra parses an item as text without invalid interpolations."""
    if not isinstance(parsed, list) or not isinstance(parsed[0], str):
        return False
    return not UNESCAPED.search(REFERENCE.sub("", str(parsed[0])))


def is_call(part: str, key: str, value: str) -> bool:
    """Whether a value calls a function of Hydra's grammar. UserError if it looks like a call of an unknown one."""
    from hydra.core.override_parser.overrides_parser import create_functions

    call = CALL.fullmatch(part.strip(" \t"))
    known = create_functions().functions
    if call and call[1] not in known and not call[2]:
        raise UserError(
            f"There is no function '{call[1]}'.{suggest(call[1], known)} For text, type {line(key, value)}"
        )
    opened = OPENED.match(part.strip(" \t"))  # as in choice(1, where the bracket was forgotten
    return any(match is not None and match[1] in known for match in (call, opened))


def ambiguity(key: str, value: str) -> UserError:
    """Return the error for an ambiguous value, with what to type for one text or for several."""
    text = listed(value)
    parts = [part.strip(" \t") for part in parts_of(value if text is None else text)]
    if text is None and value[:1] == "[":
        as_list = shlex.quote(f"{key}={value}]")
        return UserError(
            f"{key}={value}: the bracket is open. For a list, type {as_list}. For one text, type {line(key, value)}"
        )
    if text is None and len(parts) == 2 and not parts[1] and PLAIN.fullmatch(parts[0]):
        return UserError(
            f"{key}={value} ends with a comma. Type {key}={parts[0]}. For one text, type {line(key, value)}"
        )
    several = ""
    if text is not None and len(parts) > 1 and all(map(is_text, parts)):
        items = ",".join(map(as_text, parts))
        several = f", or for {len(parts)} texts {shlex.quote(f'{key}=[{items}]')}"
    return UserError(f"{key}={value} is ambiguous. For one text, type {line(key, value)}{several}")


def is_text(part: str, is_prose: bool = False) -> bool:
    """Whether text that Hydra can't parse is unambiguous."""
    bare = part.strip(" \t")
    opening = "'\"" if is_prose else "'\"[{"
    special = any(mark in bare for mark in (",", "${")) or ESCAPED.search(bare)
    return bool(bare) and bare[0] not in opening and not special


def listed(value: str) -> str | None:
    """Return the text between a list's brackets, or None if the value isn't a list."""
    bare = value.strip(" \t")
    return bare[1:-1] if len(bare) > 1 and bare[0] == "[" and bare[-1] == "]" else None


UNPARSED = object()


def read(override: str) -> Any:
    """Return the value of an override as parsed by Hydra, None for a sweep, or UNPARSED."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
        return None if parsed.is_sweep_override() else parsed.value()
    except (HydraException, ValueError, RecursionError):  # such as a number of 5,000 digits
        return UNPARSED


def value_quoted(value: str) -> str:
    bare = value.strip()
    if bare.startswith("[") and bare.endswith("]"):
        return f"[{items_quoted(bare[1:-1])}]"
    return in_quotes(bare) if holds_override(bare) and len(parts_of(bare, at="=")) > 1 else value


def items_quoted(listed: str) -> str:
    return ",".join(
        in_quotes(part.strip()) if holds_override(part.strip()) else part for part in parts_of(listed)
    )


def holds_override(part: str) -> bool:
    return "=" in part and part[0] not in "'\"{["


def as_text(text: str) -> str:
    """Return text as a quoted value in which nothing has a special meaning, including `${`."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return in_quotes(text, "'" if '"' in text else '"')


def in_quotes(part: str, quote: str = "'") -> str:
    part = re.sub(rf"\\+(?={quote}|\Z)", lambda backslashes: 2 * backslashes[0], part)
    return quote + part.replace(quote, "\\" + quote) + quote


def parts_of(text: str, at: str = ",") -> list[str]:
    """Split text at its top-level commas: not inside brackets or quotes, and not after a backslash.

    A quote opens only at the start of a value, and not within a word such as don't.
    """
    parts, depth, quote, escaped, before = [""], 0, "", False, ","
    for char in text:
        if char == at and not depth and not quote and not escaped:
            parts.append("")
            before = char
            continue
        parts[-1] += char
        if escaped or char == "\\":
            escaped = not escaped
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and before in ",[{(=:":
            quote = char
        else:
            depth += (char in "[{(") - (char in "]})")
        before = before if char in " \t" else char
    return parts
