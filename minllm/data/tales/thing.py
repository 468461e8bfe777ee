"""What stories are about: things with their forms, and kinds of things from which a story draws."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Thing:
    """A person, an object, a place or a plain word, with everything that agrees with it.

    forms: its surfaces by name: `""` is the thing itself, `"a"` has the article, the others come from a table
    parts: smaller kinds that belong to this thing alone, such as the hiding places of one park
    """

    forms: dict[str, str]
    parts: dict[str, Kind] = field(default_factory=dict)


Kind = tuple[Thing, ...]  # likeliest first: a story draws by rank


def words(names: str) -> Kind:
    """Make a kind of plain words from a list with commas."""
    return distinct(Thing(surfaces(" ".join(name.split()))) for name in names.split(","))


def table(columns: str, rows: str) -> Kind:
    """Make a kind from a table, one thing a line: its name, then the columns named, with `|` between.

    A line that ends in `|` goes on in the next.
    A column whose name ends in `*` holds a list with commas, which becomes a kind of the thing's own.
    """
    return distinct(
        _row(columns.split(), line) for line in re.sub(r"\|\s*\n", "|", rows).strip().splitlines()
    )


def people(she: str, he: str, they: str = "") -> Kind:
    """Make a kind of people whose name says how they are spoken of; the three lists take turns."""
    ranked = []
    for word, text in (("she", she), ("he", he), ("they", they)):
        names = [" ".join(name.split()) for name in text.split(",") if name]
        ranked += [(rank / len(names), name, word) for rank, name in enumerate(names)]
    return distinct(Thing(surfaces(name) | PRONOUNS[word]) for _, name, word in sorted(ranked))


PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "was": "was", "is": "is"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "was": "was", "is": "is"},
    "they": {"he": "they", "him": "them", "his": "their", "himself": "themself", "was": "were", "is": "are"},
}


def surfaces(name: str) -> dict[str, str]:
    """Return the two forms that any name has: itself, and itself after `a` or `an`."""
    vowel = name.startswith(("a", "e", "i", "o", "u", "honest")) and not name.startswith(
        ("uni", "use", "one")
    )
    return {"": name, "a": f"{'an' if vowel else 'a'} {name}"}


def distinct(things: Iterable[Thing]) -> Kind:
    """Refuse a kind in which two things look the same: a text would have two derivations."""
    kind = tuple(things)
    names = [thing.forms[""] for thing in kind]
    repeated = {name for name in names if names.count(name) > 1}
    assert not repeated, f"named twice in one kind: {sorted(repeated)}"
    return kind


def _row(columns: list[str], line: str) -> Thing:
    name, *cells = (cell.strip() for cell in line.split("|"))
    assert len(cells) == len(columns), f"the table has columns {columns}: {line!r}"
    forms, parts = surfaces(name), {}
    for column, cell in zip(columns, cells):
        if column.endswith("*"):
            parts[column[:-1]] = words(cell)
        elif column == "pronoun":
            forms |= PRONOUNS[cell]
        else:
            forms[column] = cell
    return Thing(forms, parts)
