"""Beginnings for models to continue: held-out texts, cut in mid-sentence."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from random import Random

from minllm.data.source import PairSource, Source
from minllm.data.tales import VALIDATION_SEED, Tales, story
from minllm.errors import UserError
from minllm.generation.unmask import HOLE

RESERVED_SEED = 2 * VALIDATION_SEED
"""The seed of the first story that beginnings are cut from; stories of neither split have such seeds."""
EARLIEST, LATEST, LAST = 1 / 4, 1 / 3, 1 / 2
"""A text is cut at the first suitable place after a drawn share of its characters, and not after LAST."""
SHORTEST, LONGEST = 20, 1500
"""A text with fewer characters isn't cut, and of a longer one only so many count: nobody needs to read more of it."""

WITHIN = re.compile(r"""(?<=[^\W_])[,;:]?(?= [^\W_])""")
"""Where a space follows a letter or a comma, and a letter follows the space."""
BETWEEN_LETTERS = re.compile(r"(?<=[^\W_])(?=[^\W_])")
"""Where a text that is written without spaces can be cut."""


def held_out(source: Source, number: int) -> list[tuple[str, str]]:
    """Return beginnings of held-out texts and how the texts go on; the same ones in every call.

    Of `tales` they are stories that are in neither split, whatever `data.val_stories` is. Of pairs, the given part is
    the beginning. Of other corpora they are the first validation texts that can be cut.

    Raises:
        UserError: there are too few of them.
    """
    cuts = list(itertools.islice(_cuts(source), number))
    if len(cuts) < number:
        raise UserError(
            f"grader.beginnings={number} needs as many validation texts that can be cut in mid-sentence, and there are"
            f" {len(cuts)}: set grader.beginnings={len(cuts)}, or hold more text out for validation."
        )
    return cuts


def cut(text: str, seed: int) -> tuple[str, str] | None:
    """Cut a text in mid-sentence after about a quarter to a third of it; None if there is no such place.

    The space at which it is cut belongs to the rest, because tokenizers join spaces to the words after them.
    """
    if len(text) < SHORTEST:
        return None
    length = min(len(text), LONGEST)
    wanted = round(length * Random(f"cut {seed}").uniform(EARLIEST, LATEST))
    places = WITHIN if " " in text else BETWEEN_LETTERS
    found = places.search(text, wanted, round(length * LAST))
    return (text[: found.end()], text[found.end() :]) if found else None


def _cuts(source: Source) -> Iterator[tuple[str, str]]:
    if isinstance(source, PairSource):
        yield from ((pair.given, pair.target) for pair in source.pairs("val") if _can_be_given(pair.given))
        return
    if isinstance(source, Tales):
        texts: Iterator[str] = (story(seed).text for seed in itertools.count(RESERVED_SEED))
    else:
        texts = source.documents("val")
    for number, text in enumerate(texts):
        both = cut(text, number)
        if both and _can_be_given(both[0]):
            yield both


def _can_be_given(beginning: str) -> bool:
    """Whether a model can be asked to continue it, rather than to fill a hole."""
    return bool(beginning.strip()) and HOLE not in beginning
