"""Hugging Face tokenizers (tokenizer.json) that can encode every byte, made lossless by `minllm.tokenizer.lossless`.

There are two kinds. Byte-level vocabularies (GPT-2, Llama 3, Qwen) write each byte as a letter. The others (Llama 2,
Gemma) represent a space by ▁ and fall back to bytes, such as <0xE2>. No text is encoded to a special token.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minllm.errors import UserError, first_line
from minllm.files.filetypes import SAMPLE, other_kind
from minllm.schema.checking import fits
from minllm.schema.options import Count, Name, Natural
from minllm.tokenizer import Tokenizer, write_files
from minllm.tokenizer.download import CONFIG, FILE, find_folder
from minllm.tokenizer.lossless import PROBE, SPACE, restore_spaces, without_additions

METADATA = "minllm.json"
MOST = 1 << 24  # maximum tokens; a larger number is a mistake and would exhaust memory
ENDS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"]
"""Common names of the token that ends a text, tried if the files don't name it."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class HuggingFace(Tokenizer):
    """A tokenizer read from a tokenizer.json.

    Args:
        saved: the tokenizer folder of a run; it takes precedence over `name`.
        name: the folder with tokenizer.json, or the model's name on the Hugging Face Hub.
        revision: a branch, tag or commit on the hub.
        bos: the token that begins a text, or its id; null: bos_token in tokenizer_config.json, else `eos`.
        eos: the token that ends a text, or its id; null: eos_token in tokenizer_config.json.
        vocab_size: the number of tokens, if the model has more than the tokenizer; the extra ones are unused.

    Raises:
        UserError: the file is missing or damaged, the tokenizer is lossy, or the end-of-text token isn't known.
    """

    def __init__(
        self,
        saved: Path | None = None,
        *,
        name: Name,
        revision: Name = "main",
        bos: Natural | str | None = None,
        eos: Natural | str | None = None,
        vocab_size: Count | None = None,
    ) -> None:
        import tokenizers

        self.folder = saved or find_folder(name, revision)
        self.source = read(self.folder)
        lossless = json.dumps(without_additions(self.source, self.folder / FILE))
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(lossless)
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{self.folder / FILE} can't be read: {first_line(error)}.") from error
        self.tokenizer.encode_special_tokens = (
            True  # special tokens in a text are encoded like any other text
        )
        self.tokens: dict[str, int] = self.tokenizer.get_vocab()
        self.added = self.tokenizer.get_added_tokens_decoder()
        self.is_bytes = not self.source["model"].get("byte_fallback")

        known = max(self.tokens.values()) + 1
        self.vocab_size = vocab_size or self._saved_size() or known
        if self.vocab_size > MOST:
            raise UserError(
                f"A vocabulary of {self.vocab_size:,} tokens is too large: the maximum is {MOST:,}."
            )
        self.table = self._table(max(known, self.vocab_size))
        if lost := [token for token, number in self.tokens.items() if self._is_lost(number)]:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} leaves out ordinary tokens such as {lost[0]!r}: use"
                f" {known} or more."
            )
        self.eos_id = self.pad_id = self._find_eos(eos)
        self.bos_id = self._find_bos(bos)
        ends = f"{self.bos_id}/{self.eos_id}/{self.vocab_size}"
        self.fingerprint = hashlib.sha256(f"{lossless}{ends}".encode()).hexdigest()
        self._refuse_losses()

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        texts = list(texts)
        if self.is_bytes or (SPACE in self.tokens and not any(SPACE in text for text in texts)):
            encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [self._encode_parts(text) for text in texts]

    def save(self, folder: Path) -> None:
        metadata = {"bos_token": self.bos_id, "eos_token": self.eos_id, "vocab_size": self.vocab_size}
        contents = {FILE: self.source, METADATA: metadata}
        write_files(
            folder,
            {name: json.dumps(content, ensure_ascii=False).encode() for name, content in contents.items()},
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the tokenizer in another process; its setting encode_special_tokens isn't pickled."""
        vars(self).update(state)
        self.tokenizer.encode_special_tokens = True

    @functools.cached_property
    def byte_tokens(self) -> list[int]:
        """The token of each byte, for vocabularies that fall back to bytes."""
        return [self.tokens[name] for name in BYTES]

    def _encode_parts(self, text: str) -> list[int]:
        """Encode a text with ▁ itself in it: that character is encoded as bytes, because its token means a space."""
        byte_tokens = self.byte_tokens
        parts = [self.tokenizer.encode(part, add_special_tokens=False).ids for part in text.split(SPACE)]
        if SPACE not in self.tokens:
            parts = [restore_spaces(ids, byte_tokens) for ids in parts]
        space_bytes = [byte_tokens[byte] for byte in SPACE.encode()]
        return parts[0] + [token for ids in parts[1:] for token in (*space_bytes, *ids)]

    def _table(self, size: int) -> list[bytes]:
        """Return the bytes of each token; special and unused tokens have none."""
        table, bytes_of = [b""] * size, from_letters if self.is_bytes else from_pieces
        for token, number in self.tokens.items():
            if number not in self.added:
                table[number] = bytes_of(token)
            elif not self.added[number].special:  # matched literally in texts
                table[number] = (token if self.is_bytes else token.replace(SPACE, " ")).encode()
        return table

    def _is_lost(self, number: int) -> bool:
        is_special = number in self.added and self.added[number].special
        return number >= self.vocab_size and not is_special

    def _find_eos(self, eos: int | str | None) -> int:
        if eos is None:
            eos = self._configured("eos_token") or next(
                (token for token in ENDS if token in self.tokens), None
            )
        if eos is None:
            raise UserError(
                f"The end-of-text token of {self.folder / FILE} isn't known: add tokenizer.eos=<the token or its"
                " id>."
            )
        return self._special_id(eos, "tokenizer.eos")

    def _find_bos(self, bos: int | str | None) -> int:
        bos = self._configured("bos_token") if bos is None else bos
        return self.eos_id if bos is None else self._special_id(bos, "tokenizer.bos")

    def _configured(self, key: str) -> int | str | None:
        """Return the token that begins or ends a text according to the files beside tokenizer.json."""
        for file in (self.folder / METADATA, self.folder / CONFIG):
            if file.is_file():
                value = read_json(file).get(key)
                value = value.get("content") if isinstance(value, dict) else value
                if value is not None and not fits(value, Natural | str):
                    raise UserError(f"{file} has {key}={value!r}, which is neither a token nor its id.")
                return value
        return None

    def _saved_size(self) -> int | None:
        """Return the number of tokens that a run has saved, if any."""
        metadata = self.folder / METADATA
        size = read_json(metadata).get("vocab_size") if metadata.is_file() else None
        if not fits(size, Count | None):
            raise UserError(f"{metadata} is damaged: its vocab_size {size!r} isn't a number of tokens.")
        return size

    def _special_id(self, token: int | str, key: str) -> int:
        """Return the id of a special token. UserError if it isn't one."""
        if isinstance(token, str) and token not in self.tokens:
            raise UserError(f"{self.folder / FILE} has no token {token!r}. Set {key} to a different one.")
        number = self.tokens[token] if isinstance(token, str) else token
        if number >= self.vocab_size:
            raise UserError(f"{key}={token} must be below {self.vocab_size}, the number of tokens.")
        if spelled := self.table[number]:
            raise UserError(
                f"{key}={token} is the token of {spelled!r}, which can occur in texts. Use a special token."
            )
        return number

    def _refuse_losses(self) -> None:
        spelled = LETTERS if self.is_bytes else BYTES
        has_all = all(letter in self.tokens for letter in spelled)
        ids = self.encode(PROBE) if has_all else []
        if self.decode(ids) != PROBE or {self.bos_id, self.eos_id} & {*ids}:
            raise UserError(
                f"{self.folder / FILE} is lossy, so bits per byte can't be computed. Use a byte-level tokenizer, or one"
                " that falls back to bytes."
            )


def read(folder: Path) -> dict[str, Any]:
    if not (folder / FILE).is_file():
        raise UserError(
            f"There is no {FILE} in '{folder}'. Give a folder, or a model on the hub, that has one."
        )
    source = read_json(folder / FILE)
    if not isinstance(source.get("model"), dict):
        raise UserError(f"{folder / FILE} is damaged: it describes no model.")
    return source


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some programs write a byte order mark
        values = json.loads(text, object_hook=_infinite)
    except UnicodeDecodeError as error:
        what = other_kind(path.read_bytes()[:SAMPLE])
        raise UserError(f"{path} is damaged: it is {what[0] if what else 'not UTF-8 text'}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it can't be read as JSON.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it isn't a JSON object.")
    return values


def _infinite(values: dict[str, Any]) -> Any:
    """Decode infinity as transformers writes it: {"__float__": "Infinity"}."""
    return float(values["__float__"]) if list(values) == ["__float__"] else values


def _letters() -> dict[str, int]:
    """Return GPT-2's mapping of letters to bytes, printable bytes map to themselves."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}


LETTERS = _letters()


def from_letters(token: str) -> bytes:
    if not all(letter in LETTERS for letter in token):  # no text is encoded to it
        return token.encode()
    return bytes(LETTERS[letter] for letter in token)


def from_pieces(token: str) -> bytes:
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE, " ").encode()
