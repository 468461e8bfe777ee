"""Lossless byte-pair encoding and unigram tokenizers, based on sentencepiece.

For byte-pair encoding, texts are first split by a regular expression similar to GPT-4's: a word includes the space or
punctuation mark before it, digits come in pairs, and a line end stays with the marks before it. Each chunk is encoded
separately, so no token spans two chunks. sentencepiece uses the expression only in training, as its `pretokenizer`
callback, and not in `encode`. Having learnt `'s` from `it's`, it would also use it in `the 'sun'`, where the expression
separates `'` from `sun`. So texts are split here too, and their tokens are those that training counted.

A unigram model has no expression: a text is encoded as a whole, by its most likely segmentation.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minllm.data.source import expanded
from minllm.errors import UserError
from minllm.schema.groups import HOME as REPOSITORY
from minllm.schema.groups import find_groups
from minllm.schema.options import Place
from minllm.tokenizer import Tokenizer, write_files
from minllm.tokenizer.lossless import PROBE, SPACE, restore_spaces

MODEL, METADATA = "tokenizer.model", "metadata.json"
CACHED_CHUNKS = 1 << 16  # chunks whose tokens are cached: a few words make up most of a text


class SentencePiece(Tokenizer):
    """A trained tokenizer, read from a folder with `tokenizer.model` and `metadata.json`.

    Args:
        saved: the tokenizer folder of a run; it takes precedence over `folder`.
        folder: the tokenizer's folder, relative to the working directory or else to the repository.

    Raises:
        UserError: there's no such folder, or its files are damaged or don't belong together.
    """

    def __init__(self, saved: Path | None = None, *, folder: Place) -> None:
        place = saved or find_folder(folder)
        metadata, model = read_folder(place)
        try:
            self.read(metadata, model)
        except (RuntimeError, TypeError) as error:  # what sentencepiece raises for a file that isn't a model
            raise UserError(
                f"The tokenizer in '{place}' is damaged: {MODEL} isn't a sentencepiece model."
            ) from error
        # not by `decode`, which would make a table of all tokens
        decoded = b"".join(map(self.bytes_of, self.encode(PROBE)))
        if self.eos_id < 0 or decoded != PROBE.encode():
            raise UserError(
                f"The tokenizer in '{place}' is lossy or has no end-of-text token, and minllm needs a lossless one that"
                " has. Train another: python run.py task=tokenizer 'tokenizer.sizes=[4096]'"
            )

    @classmethod
    def of(cls, metadata: dict[str, Any], model: bytes) -> SentencePiece:
        """Return a tokenizer that has just been trained and isn't in a folder yet."""
        tokenizer = cls.__new__(cls)
        tokenizer.read(metadata, model)
        return tokenizer

    def read(self, metadata: dict[str, Any], model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.metadata, self.model = metadata, model
        self.processor = SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(self.model)
        self.vocab_size = self.processor.vocab_size()
        self.bos_id = self.eos_id = self.pad_id = self.processor.eos_id()
        self.byte_tokens = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self.has_space = self.processor.piece_to_id(SPACE) != self.processor.unk_id()
        pattern = self.metadata["pattern"]
        self.split = re.compile(pattern).findall if pattern else None
        self.fingerprint = hashlib.sha256(self.model + (pattern or "").encode()).hexdigest()

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        if self.split is None:
            return [self.encode_chunk(text) for text in texts]
        chain = itertools.chain.from_iterable
        return [list(chain(map(self.tokens_of, self.split(text)))) for text in texts]

    def save(self, folder: Path) -> None:
        write_folder(folder, self.metadata, self.model)

    @functools.cached_property
    def table(self) -> list[bytes]:
        """The bytes of each token."""
        return [self.bytes_of(token) for token in range(self.vocab_size)]

    @functools.cached_property
    def tokens_of(self) -> Callable[[str], list[int]]:
        return functools.lru_cache(CACHED_CHUNKS)(self.encode_chunk)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cache, which can't be pickled."""
        return {name: value for name, value in vars(self).items() if name != "tokens_of"}

    def encode_chunk(self, chunk: str) -> list[int]:
        """Return a chunk's tokens; ▁ itself is encoded as bytes, because its token means a space."""
        first, *rest = map(self.encode_part, chunk.split(SPACE))
        space_bytes = [self.byte_tokens[byte] for byte in SPACE.encode()]
        return first + [token for tokens in rest for token in (*space_bytes, *tokens)]

    def encode_part(self, part: str) -> list[int]:
        tokens = self.processor.encode(part)
        return tokens if self.has_space else restore_spaces(tokens, self.byte_tokens)

    def bytes_of(self, token: int) -> bytes:
        piece = self.processor.id_to_piece(token)
        if self.processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        if self.processor.is_control(token) or self.processor.is_unknown(token):
            return b""
        return piece.replace(SPACE, " ").encode()


def is_trained(folder: str) -> bool:
    """Whether a folder has a trained tokenizer, or part of one."""
    return any(map(is_there, candidate_paths(folder)))


def candidate_paths(folder: str) -> list[Path]:
    """Return the possible paths of a folder: relative to the working directory, and to the repository."""
    here = expanded(folder, "tokenizer.folder")
    return [here, REPOSITORY / here]


def is_there(place: Path) -> bool:
    return (place / MODEL).is_file() or (place / METADATA).is_file()


def find_folder(folder: str) -> Path:
    """Return the tokenizer's folder."""
    for place in candidate_paths(folder):
        if is_there(place):
            return place
    raise UserError(
        f"There is no tokenizer in '{folder}'. Train one with python run.py task=tokenizer 'tokenizer.sizes=[4096]', or"
        f" choose tokenizer={' or '.join(find_groups()['tokenizer'])}."
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return a tokenizer's metadata and model, checked against each other."""
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
        model = (folder / MODEL).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"The tokenizer in '{folder}' is incomplete: {Path(error.filename).name} is missing."
        ) from error
    except OSError as error:
        raise UserError(f"The tokenizer in '{folder}' can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"The tokenizer in '{folder}' is damaged: {METADATA} isn't valid JSON.") from error
    if not isinstance(metadata, dict) or not {"sha256", "pattern"} <= metadata.keys():
        raise UserError(f"The tokenizer in '{folder}' is damaged: {METADATA} has no sha256 or pattern.")
    if not is_pattern(metadata["pattern"]):
        raise UserError(
            f"The tokenizer in '{folder}' is damaged: the pattern in {METADATA} must be null or a regular"
            " expression without groups."
        )
    if hashlib.sha256(model).hexdigest() != metadata["sha256"]:
        raise UserError(
            f"The tokenizer in '{folder}' is damaged: {MODEL} doesn't match the sha256 in {METADATA}."
            " Restore both files, or train it again."
        )
    return metadata, model


def is_pattern(pattern: object) -> bool:
    try:
        return (
            pattern is None or re.compile(pattern).groups == 0
        )  # with groups, `findall` would return only those
    except (re.error, TypeError):
        return False


def write_folder(folder: Path, metadata: dict[str, Any], model: bytes) -> None:
    """Write a tokenizer's two files, the metadata last: a folder without matching metadata is rejected."""
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    try:
        write_files(folder, {MODEL: model, METADATA: text.encode()})
    except OSError as error:
        raise UserError(f"The tokenizer can't be written in '{folder}': {error.strerror}.") from error
