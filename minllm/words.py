"""Words of the command line, `key=value`: what they say, how they're typed, and what is short for them.

Hydra is imported only where its grammar is needed, so that the answer to --help comes at once.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from minllm.errors import UserError, suggest

UNSET = " If it comes from a variable of the shell or of a script, that variable isn't set."


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def is_seed(word: str) -> bool:
    return key_of(word) == "seed"


def written(value: Any) -> str:
    """Return a value of a configuration as it's typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def with_runs_data(words: Sequence[str]) -> list[str]:
    """Return a command line whose `data.path=…` is taken for the data of the run that it goes on with or looks at.

    The default data, which Hydra composes first, may not have that option; the run's own are held to it afterwards.
    """
    goes_on = any(word.startswith(("resume=", "run=")) for word in words)
    if not goes_on or any(word.startswith("data=") for word in words):
        return list(words)
    return [f"++{word}" if word.startswith("data.") else word for word in words]


# ---- short names ---------------------------------------------------------------------------------


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest ending of each name that no other name ends with: `n_heads` for `model.attn.n_heads`."""
    names = list(dict.fromkeys(names))
    ends = Counter(ending for name in names for ending in endings(name))
    return {name: next((end for end in endings(name) if ends[end] == 1), name) for name in names}


def endings(name: str) -> list[str]:
    """Return the endings of a name that begin with a whole word of it, the shortest first."""
    starts = [0, *(point.end() for point in re.finditer(r"[./]", name))]
    return [name[start:] for start in reversed(starts)]


# ---- quotes --------------------------------------------------------------------------------------

PLAIN = re.compile(r"[\w./+-]*", re.ASCII)  # values that need no look: nearly all
LONG = 1000  # digits: Python reads no longer numbers than 4,300
PROSE = ("prompts",)  # lists of ordinary text: each item is text, whatever else it looks like
ESCAPED = re.compile(r"\\[\\()\[\]{}:=, \t'\"]")  # what Hydra's grammar, or a user, takes for one character
CALL = re.compile(r"([A-Za-z_]\w*)( ?)\(.*\)", re.ASCII | re.DOTALL)
OPENED = re.compile(r"([A-Za-z_]\w*)\([^)]*\Z", re.ASCII)
REFERENCE = re.compile(r"\$\{\s*[A-Za-z_.][^{}]*\}")
UNESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


def quoted(word: str) -> str:
    """Return a word with quotes where Hydra's grammar needs them and there is only one way to read it.

    So `prompts=[Don't stop]`, `data.path=notes (1).txt`, `arms.a=[norm=pre]` and `baseline=norm=pre` can be typed as
    they are. What the grammar accepts keeps its meaning: a comma separates values, `${…}` refers to another value.

    Raises:
        UserError: there are several ways to read it; the message has the lines to type.
    """
    key, _, value = word.partition("=")
    if key.startswith("-") or (PLAIN.fullmatch(value) and len(value) < LONG) or not key:
        return word
    is_prose = key_of(word) in PROSE and listed(value) is not None
    if not is_prose and read(word) is not UNREAD:
        return word
    if "=" in value and not is_prose:
        word = f"{key}={','.join(map(value_quoted, parts_of(value)))}"
        if read(word) is not UNREAD:
            return word
    if read(f"{key}=x") is UNREAD:
        return word  # the key is at fault, which Hydra's error says
    return f"{key}={text_quoted(key, value, is_prose)}"


def comma_note(word: str) -> str | None:
    """Return what to say about a list of prompts whose unquoted commas could also belong to one text."""
    key, _, value = word.partition("=")
    text = listed(value)
    parts = parts_of(text) if key_of(word) in PROSE and text is not None else []
    if len(parts) < 2 or all(part.strip()[:1] in ("'", '"') for part in parts):
        return None
    return f"{key} has {len(parts)} items, separated by commas. For one text, type {line(key, value)}"


def line(key: str, value: str) -> str:
    """Return what to type in a shell so that `value`, or what stands in its brackets, is one text."""
    text = listed(value)
    return shlex.quote(f"{key}={as_text(value)}" if text is None else f"{key}=[{as_text(text)}]")


def text_quoted(key: str, value: str, is_prose: bool) -> str:
    """Quote those of the values that Hydra can't read, or wouldn't read as text, where there is one reading."""
    text = listed(value)
    parts = parts_of(value if text is None else text)
    if text is not None and not text.strip(" \t"):
        return value
    made = []
    for part in parts:
        found = read(f"x=[{part}]") if part.strip(" \t") else UNREAD
        as_it_is = is_prose_item(part, found) if is_prose else found is not UNREAD
        if not as_it_is and not is_prose and is_call(part, key, value):
            return value  # Hydra says what is wrong with the arguments
        if not as_it_is and not (
            is_text(part, is_prose) and (found is not UNREAD or not is_prose or len(parts) == 1)
        ):
            raise several_readings(key, value)
        made.append(part if as_it_is else in_quotes(part.strip(" \t")))
    return ",".join(made) if text is None else f"[{','.join(made)}]"


def is_prose_item(part: str, found: Any) -> bool:
    """Whether Hydra reads an item as text, and as nothing that OmegaConf would stumble over."""
    if not isinstance(found, list) or not isinstance(found[0], str):
        return False
    return not UNESCAPED.search(REFERENCE.sub("", str(found[0])))


def is_call(part: str, key: str, value: str) -> bool:
    """Whether a value calls one of the grammar's functions; refuse what looks like a call of another."""
    from hydra.core.override_parser.overrides_parser import create_functions

    call = CALL.fullmatch(part.strip(" \t"))
    known = create_functions().functions
    if call and call[1] not in known and not call[2]:
        raise UserError(
            f"There is no function '{call[1]}'.{suggest(call[1], known)} For text, type {line(key, value)}"
        )
    opened = OPENED.match(part.strip(" \t"))  # as in choice(1, where the bracket was forgotten
    return any(found is not None and found[1] in known for found in (call, opened))


def several_readings(key: str, value: str) -> UserError:
    """Say that a value can be read in several ways, and what to type for one text or for several."""
    text = listed(value)
    parts = [part.strip(" \t") for part in parts_of(value if text is None else text)]
    if text is None and value[:1] == "[":
        as_list = shlex.quote(f"{key}={value}]")
        return UserError(
            f"{key}={value}: the bracket is open. For a list, type {as_list}. For one text, type {line(key, value)}"
        )
    if text is None and len(parts) == 2 and not parts[1] and PLAIN.fullmatch(parts[0]):
        return UserError(
            f"{key}={value} ends in a comma. Type {key}={parts[0]}. For one text, type {line(key, value)}"
        )
    several = ""
    if text is not None and len(parts) > 1 and all(map(is_text, parts)):
        items = ",".join(map(as_text, parts))
        several = f", or {shlex.quote(f'{key}=[{items}]')} for {len(parts)}"
    return UserError(
        f"{key}={value} can be read in several ways. For one text, type {line(key, value)}{several}"
    )


def is_text(part: str, is_prose: bool = False) -> bool:
    """Whether there is only one way to read what Hydra doesn't: as it stands."""
    bare = part.strip(" \t")
    opening = "'\"" if is_prose else "'\"[{"
    special = any(one in bare for one in (",", "${")) or ESCAPED.search(bare)
    return bool(bare) and bare[0] not in opening and not special


def listed(value: str) -> str | None:
    """Return what stands between a list's brackets, or None if the value is no list."""
    bare = value.strip(" \t")
    return bare[1:-1] if len(bare) > 1 and bare[0] == "[" and bare[-1] == "]" else None


UNREAD = object()


def read(word: str) -> Any:
    """Return the value that Hydra reads in a word, None for a sweep, or UNREAD."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_overrides([word])[0]
        return None if override.is_sweep_override() else override.value()
    except (HydraException, ValueError, RecursionError):  # such as a number of 5,000 digits
        return UNREAD


def value_quoted(value: str) -> str:
    bare = value.strip()
    if bare.startswith("[") and bare.endswith("]"):
        return f"[{words_quoted(bare[1:-1])}]"
    return in_quotes(bare) if is_word(bare) and len(parts_of(bare, at="=")) > 1 else value


def words_quoted(listed: str) -> str:
    return ",".join(in_quotes(part.strip()) if is_word(part.strip()) else part for part in parts_of(listed))


def is_word(part: str) -> bool:
    return "=" in part and part[0] not in "'\"{["


def as_text(text: str) -> str:
    """Return text as a quoted value in which nothing has a meaning of its own, `${` included."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return in_quotes(text, "'" if '"' in text else '"')


def in_quotes(part: str, quote: str = "'") -> str:
    part = re.sub(rf"\\+(?={quote}|\Z)", lambda backslashes: 2 * backslashes[0], part)
    return quote + part.replace(quote, "\\" + quote) + quote


def parts_of(text: str, at: str = ",") -> list[str]:
    """Split a list's text at its own commas, and not at those inside brackets or quotes, or behind a backslash.

    A quote opens where a value begins, and not within a word such as don't.
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
