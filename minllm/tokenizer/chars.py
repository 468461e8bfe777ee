"""A token for each character of a corpus; what else a text may have is spelled in bytes, so nothing is lost."""

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
    """Token 0 begins and ends a text, 256 tokens are bytes, and the others the corpus's characters in their order.

    Args:
        saved: the folder a run kept, if the tokenizer is a run's; the data isn't looked at then.
        data: the corpus.
        documents: how many of its training documents are looked at.

    Raises:
        UserError: the corpus can't be read, or the folder is damaged.
    """

    bos_id = eos_id = pad_id = 0

    def __init__(
        self, saved: Path | None = None, *, data: Callable[[], Source], documents: Count = 2000
    ) -> None:
        self.characters = read(saved) if saved else found_in(islice(data().documents("train"), documents))
        self.vocab_size = FIRST_CHARACTER + len(self.characters)
        self.table = [
            b"",
            *(bytes([byte]) for byte in range(256)),
            *(one.encode() for one in self.characters),
        ]
        self.fingerprint = hashlib.sha256(self.characters.encode()).hexdigest()
        self.spelled = Spelled({ord(one): chr(n) for n, one in enumerate(self.characters, FIRST_CHARACTER)})

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        # `translate` is the fastest way to look up every character: a token is the number of a character for a while
        return [list(map(ord, text.translate(self.spelled))) for text in texts]

    def save(self, folder: Path) -> None:
        write_files(folder, {FILE: json.dumps({"characters": self.characters}).encode()})


class Spelled(dict[int, str]):
    """The token of each character; another's tokens are those of its bytes."""

    def __missing__(self, character: int) -> str:
        return "".join(chr(FIRST_BYTE + byte) for byte in chr(character).encode())


def found_in(texts: Iterable[str]) -> str:
    """Return the characters of some texts, each once and in order."""
    return "".join(sorted(set().union(*texts)))


def read(folder: Path) -> str:
    try:
        characters = json.loads((folder / FILE).read_bytes())["characters"]
    except OSError as error:
        raise UserError(f"{folder / FILE} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / FILE} is damaged: it has no list of characters.") from error
    if not isinstance(characters, str) or characters != found_in([characters]):
        raise UserError(f"{folder / FILE} is damaged: its characters aren't in order, each once.")
    return characters
