"""A token for each character of a corpus; other characters are encoded as bytes, so nothing is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from minllm.data.source import Source
from minllm.errors import UserError
from minllm.schema.options import Count
from minllm.tokenizer import Tokenizer, write_files

FILE = "characters.json"
FIRST_BYTE = 1  # 0 begins and ends a text
FIRST_CHARACTER = FIRST_BYTE + 256


class Chars(Tokenizer):
    """Token 0 begins and ends a text, tokens 1 to 256 are bytes, and the rest are the corpus's characters in order.

    Args:
        saved: the tokenizer folder of a run; the data isn't read then.
        data: the corpus.
        documents: how many of its training documents are read.

    Raises:
        UserError: the corpus can't be read, or the folder is damaged.
    """

    bos_id = eos_id = pad_id = 0

    def __init__(
        self, saved: Path | None = None, *, data: Callable[[], Source], documents: Count = 2000
    ) -> None:
        self.characters = (
            read(saved) if saved else distinct_characters(islice(data().documents("train"), documents))
        )
        self.vocab_size = FIRST_CHARACTER + len(self.characters)
        self.table = [
            b"",
            *(bytes([byte]) for byte in range(256)),
            *(character.encode() for character in self.characters),
        ]
        self.fingerprint = hashlib.sha256(self.characters.encode()).hexdigest()
        self.character_tokens = CharacterTokens(
            {ord(character): chr(n) for n, character in enumerate(self.characters, FIRST_CHARACTER)}
        )

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        # `translate` is the fastest way to look up every character, with token ids as code points
        return [list(map(ord, text.translate(self.character_tokens))) for text in texts]

    def save(self, folder: Path) -> None:
        write_files(folder, {FILE: json.dumps({"characters": self.characters}).encode()})


class CharacterTokens(dict[int, str]):
    """The token of each known character; other characters become the tokens of their bytes."""

    def __missing__(self, character: int) -> str:
        return "".join(chr(FIRST_BYTE + byte) for byte in chr(character).encode())


def distinct_characters(texts: Iterable[str]) -> str:
    """Return the distinct characters of some texts, in order."""
    return "".join(sorted(set().union(*texts)))


def read(folder: Path) -> str:
    try:
        characters = json.loads((folder / FILE).read_bytes())["characters"]
    except OSError as error:
        raise UserError(f"{folder / FILE} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / FILE} is damaged: it has no list of characters.") from error
    if not isinstance(characters, str) or characters != distinct_characters([characters]):
        raise UserError(f"{folder / FILE} is damaged: its characters aren't sorted and distinct.")
    return characters
