"""A token for each symbol of a probe: words with a space after each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from minllm.data.probe import Probe
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.tokenizer import Tokenizer, write_files

FILE = "symbols.json"


class Symbols(Tokenizer):
    """Token 0 begins and ends a text, and the others are the probe's symbols in their order.

    Texts with anything else can't be encoded.

    Args:
        saved: the tokenizer folder of a run; the data isn't read then.
        data: the probe.

    Raises:
        UserError: the data isn't a probe, or the folder is damaged.
    """

    bos_id = eos_id = pad_id = 0

    def __init__(self, saved: Path | None = None, *, data: Callable[[], Source]) -> None:
        self.symbols = read(saved) if saved else symbols_of(data())
        self.vocab_size = 1 + len(self.symbols)
        self.table = [b"", *(f"{symbol} ".encode() for symbol in self.symbols)]
        self.fingerprint = hashlib.sha256(json.dumps(self.symbols).encode()).hexdigest()
        self.tokens = {symbol: n for n, symbol in enumerate(self.symbols, 1)}

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the tokens of each text. UserError if it isn't made of symbols with a space after each."""
        return [self.encode_text(text) for text in texts]

    def encode_text(self, text: str) -> list[int]:
        *words, rest = text.split(" ")
        try:
            if rest == "":
                return [self.tokens[word] for word in words]
        except KeyError as error:
            raise UserError(
                f"tokenizer=symbols knows only the symbols of the probe, such as"
                f" '{' '.join(self.symbols[:3])}', and '{error.args[0]}' isn't one: choose another tokenizer, or write"
                " the text in symbols."
            ) from error
        raise UserError(f"tokenizer=symbols needs a space after each symbol, and '{rest}' has none.")

    def save(self, folder: Path) -> None:
        write_files(folder, {FILE: json.dumps({"symbols": self.symbols}).encode()})


def symbols_of(source: Source) -> list[str]:
    if not isinstance(source, Probe):
        raise UserError(
            "tokenizer=symbols is for probes, such as data=probe/mqar, whose symbols are its tokens: choose another"
            " tokenizer."
        )
    return checked(list(source.symbols), "The probe's symbols")


def read(folder: Path) -> list[str]:
    try:
        symbols = json.loads((folder / FILE).read_bytes())["symbols"]
    except OSError as error:
        raise UserError(f"{folder / FILE} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / FILE} is damaged: it has no list of symbols.") from error
    return checked(symbols, f"{folder / FILE} is damaged: its symbols")


def checked(symbols: list[str], name: str) -> list[str]:
    """Return symbols. UserError unless they are distinct texts without white space."""
    is_list = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    if (
        not is_list
        or any(symbol.split() != [symbol] for symbol in symbols)
        or len(set(symbols)) < len(symbols)
    ):
        raise UserError(f"{name} must be different words without white space.")
    return symbols
